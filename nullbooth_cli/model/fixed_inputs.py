"""Fixed inputs of a pipeline, read: pictures as PIL images in RGB, tensors, and all other values as they are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import read_image
from nullbooth_cli.settings.pipeline_inputs import KEY, TENSOR, there, with_files

if TYPE_CHECKING:
    import torch


def read_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a config with their files read. Raises ConfigError for a file that is not there or cannot be read."""
    return with_files(inputs, _read)


def _read(name: str, file: str) -> Any:
    place = there(name, file)
    return _tensor(name, file) if place.suffix.lower() == TENSOR else read_image(place)


def _tensor(name: str, file: str) -> "torch.Tensor":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{KEY}.{name}: cannot read {file}: {error}", "write it with safetensors.torch.save_file") from error
    if len(tensors) != 1:
        raise ConfigError(f"{KEY}.{name}: {file} has {len(tensors)} tensors, not one", "save the tensor that you mean alone")
    return next(iter(tensors.values()))
