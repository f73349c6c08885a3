"""A pipeline folder, read before any of its weights: its class, its parts, and whether nullbooth can use it.

    model_index.json               the class, and the class of each part
    <part>/config.json             of the denoiser, the autoencoder and text encoders; scheduler/scheduler_config.json

`read_pipeline_folder()` refuses what can be known from these files: JSON of another shape, parts that are not there, and models
that need more than their class is given.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.pipeline_classes import OTHER, UNUSED, needed_inputs, require_usable
from nullbooth_cli.model.sources import PICKLED, PIPELINE_INDEX, SAFE

_AGAIN = "get the model again, or save it again with save_pretrained of the pipeline"
_CONFIG_FILES = ("config.json", "scheduler_config.json")
_CHANNELS = {5: "a depth image", 7: "a small image", 8: "an image to edit", 9: "an image with a mask to fill"}


@dataclass(frozen=True)
class PipelineFolder:
    """The class of a pipeline, and the class of each part that it has; `left_out` are unused parts whose files are missing."""

    class_name: str
    parts: Mapping[str, str]
    left_out: tuple[str, ...]


def read_pipeline_folder(folder: str | Path, *, weights: bool) -> PipelineFolder:
    """Read the configs of a pipeline folder. With `weights`, every part that the pipeline uses must be there.

    Raises ConfigError for a file that is not what diffusers writes, and for a part without files; ModelError for a pipeline class
    that cannot be used, and for a U-Net that needs more than its class gives it. Cost: some small files.
    """
    folder = Path(folder)
    index = read_json(folder / PIPELINE_INDEX)
    class_name, parts = _text(index, "_class_name", folder / PIPELINE_INDEX), dict[str, str]()
    for name, kind in index.items():
        if isinstance(kind, list) and not _is_setting(kind):
            if len(kind) != 2 or not all(each is None or isinstance(each, str) for each in kind):
                raise ConfigError(f"{folder / PIPELINE_INDEX}: {name} is {kind}, not a library and a class", _AGAIN)
            if kind[1] is not None:
                parts[name] = kind[1]
    require_usable(class_name)
    left_out = _missing_unused(folder, parts)
    parts = {name: kind for name, kind in parts.items() if name not in left_out}
    for name in parts:
        if weights:
            _require_files(folder, name)
        _require_classes(folder / name)
    if not needed_inputs(class_name):
        _require_latents_alone(folder)
    return PipelineFolder(class_name, parts, left_out)


def _is_setting(values: list[Any]) -> bool:
    """Whether a list of the index is a setting of the pipeline, such as the layers that Krea 2 takes its text from."""
    return bool(values) and all(isinstance(value, int | float) for value in values)


def read_json(file: Path) -> dict[str, Any]:
    """A file of a JSON mapping. Raises ConfigError naming the file for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file} is missing", _AGAIN) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {file}: {error}", _AGAIN) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} has a {type(found).__name__} in place of a mapping", _AGAIN)
    return found


def _text(values: Mapping[str, Any], key: str, file: Path) -> str:
    if not isinstance(values.get(key), str):
        raise ConfigError(f"{file}: {key} is {values.get(key)!r}, not a name", _AGAIN)
    found: str = values[key]
    return found


def _missing_unused(folder: Path, parts: Mapping[str, str]) -> tuple[str, ...]:
    """The unused parts to load without: those whose files are missing, and what cannot be loaded without them."""

    def is_there(name: str) -> bool:
        files = [path for path in (folder / name).rglob("*") if path.is_file()] if (folder / name).is_dir() else []
        endings = (".json",) if name == "feature_extractor" else (SAFE, *PICKLED)
        return any(path.suffix in endings for path in files)

    missing = [name for name in UNUSED if name in parts and not is_there(name)]
    if "feature_extractor" in missing and "safety_checker" in parts:
        missing.append("safety_checker")  # it reads pictures through the extractor
    return tuple(dict.fromkeys(missing))


def _require_files(folder: Path, name: str) -> None:
    place = folder / name
    if not place.is_dir() or not any(place.iterdir()):
        raise ConfigError(f"{folder} has no {name}: {PIPELINE_INDEX} names one, and {place} is missing or empty", _AGAIN)
    if (place / "config.json").exists() and not any(file.suffix in (SAFE, *PICKLED) for file in place.iterdir()):
        raise ConfigError(f"{place} has a config.json and no weights", _AGAIN)


def _require_classes(place: Path) -> None:
    for file in (place / each for each in _CONFIG_FILES):
        if file.exists() and "_class_name" in (config := read_json(file)):
            _text(config, "_class_name", file)


def _require_latents_alone(folder: Path) -> None:
    """Raise ModelError for a U-Net that takes other channels beside the latents."""
    unet, vae = (folder / part / "config.json" for part in ("unet", "vae"))
    if unet.exists() and vae.exists():
        taken, latents = read_json(unet).get("in_channels"), read_json(vae).get("latent_channels")
        require_latents_alone(f"the U-Net of {folder}", taken, latents)


def require_latents_alone(what: str, taken: object, latents: object) -> None:
    """Raise ModelError if a U-Net `what` takes another number of channels than its autoencoder's latents have."""
    if isinstance(taken, int) and isinstance(latents, int) and taken != latents:
        beside = _CHANNELS.get(taken, "something else")
        raise ModelError(f"{what} takes {taken} channels, and latents have {latents}: it needs {beside} beside the text", OTHER)
