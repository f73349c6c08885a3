"""Files of adapters: what one holds, read from the names of its tensors before anything is loaded.

    AdapterFile.find(Path("trained-lora"), allow_pickle=False)                  # what diffusers and PEFT can load whole
    AdapterFile.find(Path("style.safetensors"), allow_pickle=False, plain=False)    # any kind: lora_file.LoraFile reads it

1. A LoRA of diffusers or kohya is one file of pairs: a matrix down to the rank, and one up from it, perhaps with an alpha.
2. A folder that PEFT's `save_pretrained` wrote has an adapter_config.json; any kind of adapter that PEFT knows may be in it.
3. Everything else is an error that names the kind, unless it is asked for: diffusers leaves out what it does not know, with a
   warning at most.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.model.sources import ALLOW_PICKLE, PICKLED, SAFE

PEFT_CONFIG = "adapter_config.json"
_NOTES = "nullbooth"  # in the metadata of a file
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# PEFT's starts of a LoRA that change the weight of the layer as well, by the beginning of their names.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(r"(.*?[._])(lora\d*|lora_linear_layer)[._](down|up|A|B)\.weight")
_BESIDE = re.compile(r".*\.alpha|.*lora_magnitude_vector(\.weight)?")
# Other adapters, by a part of the names of their tensors.
KINDS = {
    "dora_scale": "DoRA of kohya or LyCORIS, whose magnitudes diffusers leaves out",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
    "lora_mid": "LoCon with a core (Tucker)",
    ".diff": "whole differences of weights",
    "on_input": "IA3",
    "lora_B.bias": "biases",
}


class PairName(NamedTuple):
    """The layer that a tensor belongs to, as the file names it, and whether it goes `down` to the rank or up."""

    layer: str
    down: bool


def pair_name(tensor: str) -> PairName | None:
    """The pair that a tensor is part of, None for anything else."""
    found = _PART.fullmatch(tensor)
    return found and PairName(
        f"{found[1]}{found[2].removeprefix('lora').removeprefix('_linear_layer')}".rstrip("._"), found[3] in ("down", "A")
    )


@dataclass(frozen=True)
class AdapterFile:
    """A file of an adapter; `peft` is the folder that PEFT saved it into, None for a LoRA of diffusers or kohya."""

    path: Path
    peft: Path | None = None

    @classmethod
    def find(cls, place: Path, *, allow_pickle: bool, plain: bool = True) -> "AdapterFile | None":
        """The adapter at a place that exists; None for a pipeline folder.

        Raises ConfigError for a place that is neither, for a pickle unless it is allowed, and, if it is to be a `plain` LoRA, for
        an adapter that cannot be loaded whole. Cost: the header of a file; a pickle is read.
        """
        if (place / "model_index.json").is_file():
            return None
        if (folder := place if place.is_dir() else place.parent) and (place.is_dir() or place.name in PEFT_FILES):
            peft = [folder / name for name in PEFT_FILES if (folder / name).is_file()]
            if peft and not (folder / PEFT_CONFIG).is_file():
                raise ConfigError(
                    f"{peft[0]} was saved by PEFT, and has no {PEFT_CONFIG} beside it",
                    "name the whole folder that save_pretrained of PEFT wrote",
                )
            if peft:
                return cls(peft[0], folder)._checked(allow_pickle, plain)
        return cls(_only_file(place))._checked(allow_pickle, plain)

    def _checked(self, allow_pickle: bool, plain: bool) -> "AdapterFile":
        if self.path.suffix in PICKLED and not allow_pickle:
            raise ConfigError(f"{self.path} is pickled, and reading a pickle can run any code", ALLOW_PICKLE)
        if plain and self.peft is None:
            _require_lora(self.path, self.names)
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors. Raises ConfigError for a file that cannot be read."""
        if self.path.suffix in PICKLED:
            return tuple(self.tensors())
        return tuple(shapes_in(self.path))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The metadata in the header of a safetensors file; a pickle has none. Raises ConfigError if it cannot be read."""
        return {} if self.path.suffix in PICKLED else metadata_in(self.path)

    def tensors(self) -> Mapping[str, Any]:
        """All of its tensors, on the CPU. A pickle is read without running code.

        Raises ConfigError for a file that cannot be read, and for values that are not finite.
        """
        found = self._read()
        if wrong := [
            name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.float().isfinite().all()
        ]:
            raise ConfigError(f"{self.path}: {listed(wrong)} not finite", "train it again, or name another")
        return found

    def _read(self) -> Mapping[str, Any]:
        import pickle

        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            if self.path.suffix not in PICKLED:
                return load_file(self.path)
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            if isinstance(found, dict) and all(isinstance(value, torch.Tensor) for value in found.values()):
                return found
            problem: object = "it holds something else than tensors by name"
        except (SafetensorError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot read {self.path}: {problem}", "write it again, as a .safetensors file")


def changes_base(start: object) -> bool:
    """Whether a LoRA with this `init_lora_weights` changed the weights of the layers that it was added to."""
    return str(start).lower().startswith(_CHANGES_BASE)


def require_adapter_alone(place: object, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a config of PEFT that says that the base was changed, too, or that more was trained."""
    start = config.get("init_lora_weights", True)
    if changes_base(start):
        raise ConfigError(
            f"{place} began with init_lora_weights={start!r}, which changes the weights of the base as well",
            "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    beside = [key for key in ("modules_to_save", "trainable_token_indices") if config.get(key)]
    if beside or config.get("bias", "none") != "none":
        raise ConfigError(
            f"{place} trained more than its adapter: {beside[0] if beside else 'bias'} in its config is set",
            "merge it into its base (merge_and_unload), and name a pipeline folder saved with that",
        )


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by name, from its header. Raises ConfigError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"cannot read {file}: {error}", "write it again, as a .safetensors file") from error


def metadata_in(file: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file. Raises ConfigError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"cannot read {file}: {error}", "write it again, as a .safetensors file") from error


def notes_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What nullbooth noted in the metadata of a file, the oldest first."""
    return tuple(metadata.get(_NOTES, "").splitlines())


def with_note(metadata: Mapping[str, str], note: str) -> dict[str, str]:
    """The metadata with one more note, a line of its own; those before it stay."""
    return {**metadata, _NOTES: "\n".join([*notes_in(metadata), " ".join(note.splitlines())])}


def _only_file(place: Path) -> Path:
    """The file at a place, or the only file of weights in a folder."""
    files = [place] if place.is_file() else sorted(file for file in place.glob("*") if file.suffix in (SAFE, *PICKLED))
    if len(files) == 1 and files[0].suffix in (SAFE, *PICKLED):
        return files[0]
    if len(files) > 1:
        raise ConfigError(f"{place} has {counted(len(files), 'file')} of weights: {', '.join(f.name for f in files)}", "name one")
    raise ConfigError(
        f"{place} is neither a pipeline folder (with a model_index.json) nor a LoRA (a {SAFE} file of lora weights)",
        "name a folder that save_pretrained wrote, or the file of save_lora_weights",
    )


def _require_lora(file: Path, names: Sequence[str]) -> None:
    """Raise ConfigError unless every tensor is part of a LoRA, and every pair is whole."""
    others = [name for name in names if pair_name(name) is None and not _BESIDE.fullmatch(name)]
    kind = next((kind for part, kind in KINDS.items() for name in others if part in name), None)
    if kind is None and len(others) == len(names):
        raise ConfigError(
            f"{file} is neither a pipeline folder nor a LoRA: none of its {counted(len(others), 'tensor')} is a lora weight",
            "name a pipeline folder (with a model_index.json), or the file of save_lora_weights",
        )
    if others:
        raise ConfigError(
            f"{file} is not a plain LoRA: {counted(len(others), 'tensor')} would be left out, such as {others[0]}"
            + (f" ({kind})" if kind else ""),
            "fuse it into its base with the program that made it, and name that pipeline folder",
        )
    pairs = [pair for name in names if (pair := pair_name(name)) is not None]
    downs, ups = ({pair.layer for pair in pairs if pair.down is down} for down in (True, False))
    if alone := sorted(downs ^ ups):
        raise ConfigError(f"{file} has half a pair: {alone[0]}", "save the LoRA again")
