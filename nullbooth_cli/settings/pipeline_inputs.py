"""Fixed inputs of a pipeline (`collect.pipeline_inputs`): which of them are files, and what of them a collection depends on.

A text is a file if its name ends as that of a picture or of a tensor, except where the input is a prompt. A list of files is one
input, such as the frames of a video.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import digest
from nullbooth_cli.settings.places import expanded

KEY = "collect.pipeline_inputs"
TENSOR = ".safetensors"
_OF_PICTURES = re.compile(r".*(image|mask|video|frame)s?")  # names of inputs that are no text
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def is_file(name: str, value: object) -> bool:
    """Whether a value of an input is the name of a file."""
    return isinstance(value, str) and "prompt" not in name and Path(value).suffix.lower() in (TENSOR, *PICTURES)


def with_files(inputs: Mapping[str, Any], replaced: Callable[[str, str], Any]) -> dict[str, Any]:
    """The inputs with `replaced(name, file)` in place of every file, also in lists."""

    def made(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [made(name, each) for each in value]
        return replaced(name, value) if is_file(name, value) else value

    return {name: made(name, value) for name, value in inputs.items()}


def expanded_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with their places expanded as in a shell. Raises ConfigError for values that are no inputs."""
    for name, value in inputs.items():
        if not _is_plain(value):
            raise ConfigError(
                f"{name} is a {type(value).__name__}", "give a file, a text, a number, true or false, or a list of these"
            )
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and _OF_PICTURES.fullmatch(name) and not is_file(name, each):
                raise ConfigError(
                    f"{name} is {each!r}, whose name ends as no picture's that can be read",
                    f"give a file that ends in {', '.join((*PICTURES, TENSOR))}",
                )
    return with_files(inputs, lambda _, file: expanded(file))


def recorded_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with the digests of files in place of their names. Cost: one read of every file."""
    return with_files(inputs, lambda name, file: digest(there(name, file)))


def there(name: str, file: str) -> Path:
    """The place of a file. Raises ConfigError, naming the input, if there is none."""
    if not (place := Path(file)).is_file():
        raise ConfigError(f"{KEY}.{name}: no file at {file} (in {Path.cwd()})", "name a file that exists, or take the input out")
    return place


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)
