"""The files that nullbooth ships beside its code: configs, recipes, prompt files, and pictures to try them on.

    shipped("sdxl")           a config: configs/sdxl.yaml; "toy" is configs/nullbooth.yaml, and so is "nullbooth"
    shipped("train/sd15")     a recipe: configs/train/sd15.yaml
    shipped("toy.txt")        a prompt file: dataset/prompts/toy.txt, which a setting names nullbooth:toy.txt
    shipped("instances/toy")  a folder of pictures: dataset/instances/toy, which a setting names nullbooth:instances/toy

In the repository, which an editable installation uses too, they are where their names say. A wheel has the same folders in
nullbooth_cli/shipped (pyproject.toml copies them).
"""

import os
from functools import cache
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.texts import cut, quoted

PREFIX = "nullbooth:"
TOY = "toy"
CLASS_TEMPLATES = "class_templates.txt"  # lines with a place for a noun, which are prompts once it is filled in
_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def _root() -> Path:
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def configs() -> list[str]:
    """The names of the shipped configs; the first is `toy`, the embedded model's."""
    return [TOY, *(name for name in _names("configs", ".yaml") if name != "nullbooth")]


def recipes() -> list[str]:
    """The names of the shipped recipes: train/sd15, train/toy."""
    return [f"train/{name}" for name in _names("configs/train", ".yaml")]


def prompt_files() -> list[str]:
    """The names of the shipped prompt files."""
    return [name for each in _names("dataset/prompts", ".txt") if (name := f"{each}.txt") != CLASS_TEMPLATES]


def instances() -> list[str]:
    """The names of the shipped folders of pictures: instances/toy, instances/toy_varied."""
    return [f"instances/{name}" for name in _names("dataset/instances", "")]


def shipped(name: str) -> Path:
    """The file or folder of a shipped config, recipe, prompt file or set of pictures.

    Raises ConfigError, which lists what there is, for another name.
    """
    if name in instances():
        return _root() / "dataset" / name
    if name in (CLASS_TEMPLATES, *prompt_files()):
        return _root() / "dataset/prompts" / name
    if name == TOY:
        return _root() / "configs/nullbooth.yaml"
    if name in ("nullbooth", *configs(), *recipes()):
        return _root() / f"configs/{name}.yaml"
    raise ConfigError(
        f"nullbooth ships no {quoted(name)}",
        f"choose one of {', '.join([*configs(), *recipes(), *prompt_files(), *instances()])}",
    )


def prompt_file(source: str, key: str) -> Path:
    """The file that a setting `key` means by `nullbooth:NAME`, else the path as it is.

    Raises ConfigError, which lists what there is, for another NAME.
    """
    return _named(source, key, "prompt file", prompt_files())


def picture_folder(source: str, key: str) -> Path:
    """The folder of pictures that a setting `key` means by `nullbooth:NAME`, else the path as it is.

    Raises ConfigError, which lists what there is, for another NAME.
    """
    return _named(source, key, "folder of pictures", instances())


def _named(source: str, key: str, kind: str, names: list[str]) -> Path:
    if not source.startswith(PREFIX):
        return Path(source)
    name = source.removeprefix(PREFIX)
    if name not in names:
        known = ", ".join(f"{PREFIX}{each}" for each in names)
        raise ConfigError(f"{key}: nullbooth ships no {kind} {cut(quoted(name))}", f"choose one of {known}")
    return shipped(name)


def _names(folder: str, ending: str) -> list[str]:
    return sorted(name.removesuffix(ending) for name in os.listdir(_root() / folder) if name.endswith(ending))
