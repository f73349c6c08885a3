"""Finished changes, read from files and written back in the form that they had.

    lora.safetensors, a folder of PEFT    a LoRA: its tensors for the inputs change, all else stays, and a note is added
    runs/toy-sks, .../lora                trained files: the LoRA or the weights of the denoiser in them; the word is copied
    runs/toy-sks with method full         its last checkpoint, which has the weights of its result

`find_change()` finds what a place names, from headers; `open()` then reads it for a base that is loaded. A `FinishedChange` has
modules, puts itself onto its base, and writes itself with each module multiplied from the right.
"""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.adapter_files import PEFT_CONFIG, AdapterFile, shapes_in
from nullbooth_cli.model.adapters import fuse
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.lora_file import LoraFile
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import PIPELINE_INDEX, SAFE
from nullbooth_cli.model.trained_files import BASE_FILE, DENOISER_FILE, Base, TrainedFiles, locate, trained_checkpoints
from nullbooth_cli.model.words import WORD_FILE, has_word
from nullbooth_cli.nullspace.export import written
from nullbooth_cli.settings.config import Config

Matrix = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ChangedModule:
    """One module of a change, as its file names it: `weights` of the denoiser that it changes, which receive one input.

    `weights` is empty for a module of a text encoder.
    """

    name: str
    weights: tuple[str, ...] = ()


class FinishedChange(ABC):
    """A change of a base model that is finished, read from its files."""

    modules: tuple[ChangedModule, ...]

    @abstractmethod
    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> None:
        """Put the change onto its base, without some modules."""

    @abstractmethod
    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        """Rows X `[*, D]` for each weight of a module with X^T X = dW^T dW: dW itself, or fewer rows.

        `initial` has the base's weights by name.
        """

    @abstractmethod
    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        """Write the change with the modules in `maps` multiplied by M `[D, D]` from the right, and some left out.

        Returns notes for the user on what has another form than before.
        """


@dataclass(frozen=True, kw_only=True)
class FoundChange:
    """What a place names, from headers: an `adapter`, or the `files` of a training run with a LoRA or weights of the denoiser.

    `notes` are for the user, `token` is the word that was taught.
    """

    place: Path
    adapter: AdapterFile | None
    files: TrainedFiles | None
    notes: tuple[str, ...]
    token: str | None
    allow_pickle: bool

    @property
    def is_file(self) -> bool:
        """Whether it is one file, and not a folder."""
        return self.files is None and self.adapter is not None and self.adapter.peft is None and self.place.is_file()

    def require_word(self, prompts: Sequence[str]) -> None:
        """Raise ConfigError if no prompt has the word that was taught."""
        if self.token is not None and not any(has_word(prompt, self.token) for prompt in prompts):
            raise ConfigError(f"no prompt has the word that was taught, {self.token}", f"write {self.token} in the prompts")

    def require_output(self, output: Path) -> None:
        """Raise ConfigError for a name of a file that the result does not have."""
        if self.is_file and output.suffix != SAFE:
            raise ConfigError(f"{output} is not the name of a {SAFE} file, which the result is", f"name {output.stem}{SAFE}")

    def open(self, pipe: Pipeline) -> FinishedChange:
        """Read the change for its base. Raises ConfigError if it does not fit or cannot be refitted. Cost: one read of a LoRA."""
        if self.files is not None and self.files.denoiser is not None:
            return _TrainedWeights(self.files)
        assert self.adapter is not None
        shapes = {name: tuple(parameter.shape) for name, parameter in denoiser_of(pipe).named_parameters()}
        read = LoraFile.read(self.adapter.peft or self.adapter.path, type(pipe).__name__, shapes, allow_pickle=self.allow_pickle)
        return _Lora(read, self)


def find_change(config: Config, place: str) -> FoundChange:
    """The finished change at a place.

    Raises ConfigError if there is none, or if it was trained on another base than the config's. Cost: the headers of files.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(f"nothing at {place}", "name a LoRA, or the output of a training run")
    located = locate(path)
    notes = () if located.note is None else (located.note,)
    if (located.path / PIPELINE_INDEX).is_file():
        steps = trained_checkpoints(located.path.parent) if located.base is not None else {}
        if not steps:
            raise ConfigError(
                f"{place} is a whole pipeline, and a refit needs the change alone",
                "name a LoRA, or the output of a training run with its checkpoints",
            )
        located = locate(steps[max(steps)])  # the weights of the result
    files = TrainedFiles.find(located.path)
    if files is not None:
        files.require_base(Base.of(config))
    adapter = AdapterFile.find(located.path, allow_pickle=config.allow_pickle, plain=False) if files is None else files.adapter
    return FoundChange(
        place=located.path,
        adapter=adapter,
        files=files,
        notes=notes,
        token=located.token,
        allow_pickle=config.allow_pickle,
    )


class _Lora(FinishedChange):
    """A LoRA file, alone or in trained files."""

    def __init__(self, read: LoraFile, found: FoundChange) -> None:
        self._read, self._found = read, found
        self._by_name = {module.name: module for module in read.modules}
        self.modules = tuple(ChangedModule(module.name, module.weights) for module in read.modules)
        wrong = [module for module in read.modules if module.weights and (module.needs_base or not module.is_measurable)]
        if wrong:
            raise ConfigError(
                f"{read.path} cannot be refitted: {counted(len(wrong), 'module')}, such as {wrong[0].name} ({wrong[0].kind}), "
                "for which the weight itself counts, whatever its input",
                "train a plain LoRA, or train under a constraint",
            )
        for module in read.modules:
            if module.weights:
                module.require_form()

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> None:
        parameters = dict(denoiser_of(pipe).named_parameters())
        left_out = {module.name for module in dropped}
        for module in self._read.modules:
            if module.weights and module.name not in left_out:
                rows = module.change()
                for weight, part in zip(module.weights, module.rows, strict=True):
                    parameter = parameters[weight]
                    parameter.data += rows[part].reshape(parameter.shape).to(parameter)
        if any(not module.weights and module.name not in left_out for module in self.modules):
            self._load_text_encoders(pipe, left_out)
        if self._found.files is not None and self._found.files.word is not None:
            self._found.files.word.load_into(pipe)

    def _load_text_encoders(self, pipe: Pipeline, left_out: set[str]) -> None:
        """Fuse the modules of the text encoders, by diffusers."""
        others = [module.name for module in self.modules if module.weights or module.name in left_out]
        tensors, metadata = self._read.with_inputs_mapped({}, "", drop=others)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"text{SAFE}")
            save_file(tensors, file, metadata=metadata)
            fuse(pipe, AdapterFile(file))

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        found = self._by_name[module.name]
        if found.kind == "lora" and found.tensors.keys() <= {"up", "down", "alpha"}:
            up, down = (found.tensors[role].flatten(1).double() for role in ("up", "down"))
            short = [torch.linalg.qr(up[part], mode="r").R for part in found.rows]  # up = Q R
            return {weight: found.scale * (r @ down) for weight, r in zip(found.weights, short, strict=True)}
        rows = found.change()
        return {weight: rows[part].double() for weight, part in zip(found.weights, found.rows, strict=True)}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        tensors, metadata = self._read.with_inputs_mapped(maps, note, drop=[module.name for module in dropped])
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with written(output) as place:
            if self._found.is_file:
                save_file(contiguous, place, metadata=metadata)
                return self._new_forms(tensors, maps)
            place.mkdir()
            save_file(contiguous, place / f"{self._read.path.stem}{SAFE}", metadata=metadata)
            if self._found.files is not None:
                _copy_beside(self._found.files, place)
            elif self._found.adapter is not None and self._found.adapter.peft is not None:
                shutil.copyfile(self._found.adapter.peft / PEFT_CONFIG, place / PEFT_CONFIG)
        return self._new_forms(tensors, maps)

    def _new_forms(self, tensors: Weights, maps: Mapping[str, Matrix]) -> tuple[str, ...]:
        """A note on each kind of module that became a plain LoRA, with its ranks, and on biases that were left out."""
        ranks: dict[str, list[int]] = {}
        for module in self._read.modules:
            if module.name in maps and module.kind in ("loha", "lokr"):
                ranks.setdefault(module.kind, []).append(len(tensors[f"{module.name}.lora_down.weight"]))
        notes = [
            f"{counted(len(found), 'module')} of the kind {kind} became plain LoRA, of rank "
            f"{' to '.join(map(str, dict.fromkeys((min(found), max(found)))))}"
            for kind, found in ranks.items()
        ]
        if biases := sum(module.name in maps and module.shift() is not None for module in self._read.modules):
            notes.append(
                f"the shift of a bias is left out of {counted(biases, 'module')}: it moves every output, whatever its input"
            )
        return tuple(notes)


class _TrainedWeights(FinishedChange):
    """Weights of the denoiser in trained files: one module for each."""

    def __init__(self, files: TrainedFiles) -> None:
        assert files.denoiser is not None
        self._files, self._file = files, files.denoiser
        self.modules = tuple(ChangedModule(name, (name,)) for name in shapes_in(files.denoiser))

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> None:
        parameters = dict(denoiser_of(pipe).named_parameters())
        before = {each.name: parameters[each.name].detach().clone() for each in dropped if each.name in parameters}
        self._files.load_into(pipe)
        for name, value in before.items():
            parameters[name].data.copy_(value)

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        with safe_open(self._file, "pt") as opened:
            trained = opened.get_tensor(module.name)
        return {module.name: (trained.double() - initial[module.name].double()).flatten(1)}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        tensors = load_file(self._file)
        for module in self.modules:
            if module in dropped:
                del tensors[module.name]
            elif module.name in maps:
                before, after = initial[module.name].double(), tensors[module.name]
                moved = self.change(module, initial)[module.name] @ torch.from_numpy(maps[module.name])
                tensors[module.name] = (before + moved.reshape(before.shape)).to(after.dtype)
        with written(output) as folder:
            folder.mkdir()
            save_file(tensors, folder / DENOISER_FILE, metadata={"nullbooth": note})
            _copy_beside(self._files, folder)
        return ()


def _copy_beside(files: TrainedFiles, folder: Path) -> None:
    """Copy the name of the base, and the word if there is one."""
    for name in (BASE_FILE, *((WORD_FILE,) if files.word is not None else ())):
        shutil.copyfile(files.folder / name, folder / name)
