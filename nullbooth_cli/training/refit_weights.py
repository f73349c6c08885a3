"""Weights that were trained themselves as a finished change: those in trained files, and a whole pipeline folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nullbooth_cli.collect.open_model import load_model
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import metadata_in, shapes_in, with_note
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import PICKLED, SAFE
from nullbooth_cli.model.trained_files import BASE_FILE, DENOISER_FILE, TrainedFiles
from nullbooth_cli.model.words import WORD_FILE
from nullbooth_cli.nullspace.export import written
from nullbooth_cli.settings.config import Config
from nullbooth_cli.training.refit_change import ChangedModel, ChangedModule, FinishedChange, Matrix, Weights


class TrainedWeights(FinishedChange):
    """Weights of the denoiser in trained files: one module for each."""

    def __init__(self, files: TrainedFiles) -> None:
        assert files.denoiser is not None
        self._files, self._file = files, files.denoiser
        self.modules = tuple(ChangedModule(name, (name,)) for name in shapes_in(files.denoiser))

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        parameters = dict(denoiser_of(pipe).named_parameters())
        before = {each.name: parameters[each.name].detach().clone() for each in dropped if each.name in parameters}
        self._files.load_into(pipe)
        for name, value in before.items():
            parameters[name].data.copy_(value)
        return ChangedModel(pipe)

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        with safe_open(self._file, "pt") as opened:
            return {module.name: _moved(opened.get_tensor(module.name), initial[module.name])}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        tensors = load_file(self._file)
        for module in dropped:
            del tensors[module.name]
        _map(tensors, maps, initial)
        with written(output) as folder:
            folder.mkdir()
            save_file(tensors, folder / DENOISER_FILE, metadata=with_note(metadata_in(self._file), note))
            copy_beside(self._files, folder)
        return ()


class WholePipeline(FinishedChange):
    """A pipeline folder: one module for each parameter of its denoiser that differs from the base, in the base's precision.

    Raises ConfigError for a folder that does not fit the base. Cost: a second model in memory.
    """

    def __init__(self, found: FinishedFiles, config: Config, base: Pipeline, device: str | None) -> None:
        self._folder, self._weights = found.path, found.whole_weights()
        here = {"model": str(found.path), "revision": None, "variant": None, "pipeline_config": None}
        self._changed = load_model(config.model_copy(update=here), device)
        before, after = (dict(denoiser_of(pipe).named_parameters()) for pipe in (base, self._changed))
        if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in after.items()}:
            raise ConfigError(
                f"{found.path} is a {type(self._changed).__name__} whose denoiser has other weights than the base",
                "name the base that it was made for",
            )
        different = [name for name, value in after.items() if not torch.equal(value.to(before[name]), before[name])]
        if wrong := next((name for name in different if not after[name].isfinite().all()), None):
            raise ConfigError(f"{found.path}: {wrong} is not finite", "train it again, or name another")
        if not different:
            raise ConfigError(
                f"the denoiser of {found.path} is that of the base: nothing changed", "name a model that was trained"
            )
        self.modules = tuple(ChangedModule(name, (name,)) for name in different)

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        before, after = (dict(denoiser_of(each).named_parameters()) for each in (pipe, self._changed))
        self._base_of_dropped = {each.name: before[each.name].detach().cpu().clone() for each in dropped}
        for name, value in self._base_of_dropped.items():
            after[name].data.copy_(value)
        others = [
            part
            for part, old in pipe.components.items()
            if isinstance(old, nn.Module)
            and part.startswith("text_encoder")
            and not _is_same(old, self._changed.components[part])
        ]
        note = f"{self._folder} has another {' and '.join(others)} than the base, which is copied as it is"
        return ChangedModel(self._changed, (note,) if others else ())

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        after = denoiser_of(self._changed).get_parameter(module.name).detach().cpu()
        return {module.name: _moved(after, initial[module.name])}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        files = set(self._weights.files.values())
        (folder,) = {file.parent.name for file in files}
        with written(output) as place:
            shutil.copytree(self._folder, place)
            for file in (place / folder).iterdir():
                if file.suffix not in (SAFE, *PICKLED):
                    continue
                if (original := self._folder / folder / file.name) not in files:
                    file.unlink()  # the same weights in another form, which were not refitted
                    continue
                tensors = load_file(original)
                tensors |= {n: v.to(tensors[n].dtype) for n, v in self._base_of_dropped.items() if n in tensors}
                _map(tensors, {name: m for name, m in maps.items() if name in tensors}, initial)
                save_file(tensors, file, metadata=with_note(metadata_in(original), note))
        return ()


def copy_beside(files: TrainedFiles, folder: Path) -> None:
    """Copy the name of the base, and the word if there is one."""
    for name in (BASE_FILE, *((WORD_FILE,) if files.word is not None else ())):
        shutil.copyfile(files.folder / name, folder / name)


def _map(tensors: dict[str, torch.Tensor], maps: Mapping[str, Matrix], initial: Weights) -> None:
    """Replace each weight in `maps` by its base and dW M, in its own dtype."""
    for name, m in maps.items():
        before, after = initial[name].double(), tensors[name]
        moved = _moved(after, before) @ torch.from_numpy(m)
        tensors[name] = (before + moved.reshape(before.shape)).to(after.dtype)


def _moved(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """dW `[M, D]` in float64."""
    return (after.double() - before.double()).flatten(1)


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
