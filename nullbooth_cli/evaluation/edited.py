"""The edited models of an evaluation, named by their places, and what is wrong with them before anything is drawn.

    trained                             a pipeline folder, or the hub id of one
    lora.safetensors                    a LoRA of diffusers or kohya, or the folder that has it
    adapter                             a folder that PEFT's `save_pretrained` wrote
    lora.safetensors@0.8                at another strength
    lora.safetensors@0.8+style@0.5      several, each added to the base

`read_place()` finds what a place names, from the headers of files; `require_fits()` tries it on the base; `load_edited()` loads
the model.
"""

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from nullbooth_cli.collect.open_model import load_model
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import AdapterFile, shapes_in
from nullbooth_cli.model.adapters import attached, fuse
from nullbooth_cli.model.load import config_folder
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import SAFE, Source
from nullbooth_cli.settings.config import Config


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter, and the factor of its change."""

    adapter: AdapterFile
    scale: float


@dataclass(frozen=True)
class EditedModel:
    """What a place names: adapters to add to the base, or a pipeline of its own if there are none."""

    place: str
    adapters: tuple[ScaledAdapter, ...] = ()


def read_place(config: Config, place: str) -> EditedModel:
    """What a place names.

    Raises ConfigError if there is no model, for adapters that cannot be loaded whole, and for a scale of a pipeline. Cost:
    headers of files; for a hub id, its config files.
    """
    found = [(name, scale, _adapter(config, name)) for name, scale in _parts(place)]
    adapters = tuple(ScaledAdapter(adapter, scale) for _, scale, adapter in found if adapter is not None)
    if adapters and len(adapters) == len(found):
        return EditedModel(place, adapters)
    name, scale, _ = next(each for each in found if each[2] is None)
    if len(found) > 1 or scale != 1:
        raise ConfigError(
            f"{name} is not a LoRA, and only LoRAs can have a scale or be added up", "name the pipeline alone, without @ and +"
        )
    if name.startswith((".", "/", "~")) and not _exists(name):
        raise ConfigError(f"no model at {name}", "name a pipeline folder, the file or folder of a LoRA, or a hub id (owner/name)")
    config_folder(Source(place, local_files_only=config.local_files_only))
    return EditedModel(place)


def _parts(place: str) -> list[tuple[str, float]]:
    """The names and scales in a place; a name that exists may have the signs in it."""
    words, parts = place.split("+"), []
    while words:
        # The longest beginning that exists, else the first word.
        joined = {count: "+".join(words[:count]) for count in range(len(words), 0, -1)}
        count = next((count for count, name in joined.items() if _exists(_scaled(name)[0])), 1)
        parts.append(_scaled(joined[count]))
        words = words[count:]
    if not all(name for name, _ in parts):
        raise ConfigError(
            f"'{place}' has a '+' or a scale without a name", "write it as lora.safetensors@0.8+style.safetensors@0.5"
        )
    return parts


def _scaled(part: str) -> tuple[str, float]:
    name, sign, scale = part.rpartition("@")
    if sign and not _exists(part):
        with suppress(ValueError):
            if isfinite(float(scale)):
                return name, float(scale)
            raise ConfigError(f"the scale of {name} is {scale}", "give a number")
    return part, 1.0


def _exists(place: str) -> bool:
    return place != "" and Path(place).expanduser().exists()


def _adapter(config: Config, name: str) -> AdapterFile | None:
    path = Path(name).expanduser()
    return AdapterFile.find(path, allow_pickle=config.allow_pickle) if path.exists() else None


def require_fits(config: Config, pipe: Pipeline, place: str) -> None:
    """Raise ConfigError for an adapter that does not fit the base `pipe`, which stays as it was. Cost: one read of each file."""
    for each in read_place(config, place).adapters:
        with attached(pipe, each.adapter):
            pass


def stored_shapes(place: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the denoiser's weights in a pipeline folder, by name, from the headers of its files; None elsewhere."""
    for part in ("unet", "transformer"):
        files = sorted((Path(place).expanduser() / part).glob(f"*{SAFE}"))
        if files:
            return {name: shape for file in files for name, shape in shapes_in(file).items()}
    return None


def load_edited(config: Config, place: str, device: str | None) -> Pipeline:
    """The pipeline of an edited model, its adapters fused into the base. Raises ConfigError unless all of it can be loaded."""
    edited = read_place(config, place)
    if not edited.adapters:
        other = {"model": place, "revision": None, "variant": None, "pipeline_config": None}
        return load_model(config.model_copy(update=other), device)
    pipe = load_model(config, device)
    for each in edited.adapters:
        fuse(pipe, each.adapter, each.scale)
    return pipe
