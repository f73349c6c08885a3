"""The files that a run starts from: a config and a recipe with every key and its comment, and the prompts that they name.

FOLDER/nullbooth.yaml     the config; its paths are right from inside FOLDER
FOLDER/train.yaml         the recipe, for models that `train` takes
FOLDER/prompts/           the prompt files that the config names
FOLDER/instances/toy/     for the embedded model: pictures of a subject that it can learn
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.settings.commented import commented_yaml
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.places import expanded
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.settings.shipped import PREFIX, TOY, shipped

CONFIG, RECIPE = "nullbooth.yaml", "train.yaml"
# The recipe that fits a shipped config; no other model trains. The config sd3 is that of Stable Diffusion 3.5 medium.
RECIPES = {
    "toy": "train/toy",
    "sd14": "train/sd15",
    "sd15": "train/sd15",
    "sd21": "train/sd15",
    "sdxl": "train/sdxl",
    "sd3": "train/sd35",
    "flux": "train/flux",
    "pixart": "train/pixart",
}
_INSIDE = "Paths start at the folder that this file is in: run nullbooth from there."


@dataclass(frozen=True)
class Starter:
    """The model that the files are for, and their contents by their names in the folder."""

    model: str
    files: Mapping[str, bytes]


def starter(name: str, model: str | None = None) -> Starter:
    """The files of the shipped config `name`, for its own model or another, as a config in the folder names it.

    Raises ConfigError for a name that is not that of a shipped config. Cost: reads some small files.
    """
    config = load_config(shipped(name))
    beside, named = dict[str, bytes](), dict[str, str]()
    for key in ("original_knowledge_prompts", "heldout_prompts"):
        given = getattr(config, key)
        if isinstance(given, str):
            file = given.removeprefix(PREFIX)
            named[key] = f"prompts/{file}"
            beside[named[key]] = shipped(file).read_bytes()
    config = config.model_copy(update={**named, "model": model or config.model})
    files = {CONFIG: f"{_header(name, model)}\n{commented_yaml(config)}".encode()}
    if name not in RECIPES:
        return Starter(config.model, {**files, **beside})
    recipe = load_settings(Recipe, shipped(RECIPES[name]))
    pictures = recipe.instance_images
    if name == TOY:
        pictures = "instances/toy"
        beside |= {f"{pictures}/{file.name}": file.read_bytes() for file in sorted(shipped("instances/toy_varied").iterdir())}
    update = {"model": config.model, "store": config.store, "output": f"runs/{name}-{recipe.word}", "instance_images": pictures}
    files[RECIPE] = f"{_recipe_header(pictures)}\n{commented_yaml(recipe.model_copy(update=update))}".encode()
    return Starter(config.model, {**files, **beside})


def _header(name: str, model: str | None) -> str:
    """The first comment of the shipped config, which states what it takes, and where paths start."""
    lines = shipped(name).read_text(encoding="utf-8").splitlines()
    takes = list(takewhile(lambda line: line.startswith("# ") and not line.startswith(("# Computed", "# Every")), lines))
    of = [] if model is None else [f"# For {model!r}. The numbers below are those of the model that the config {name} is for."]
    return "".join(f"{line}\n" for line in [*of, *takes, f"# Every key is here. {_INSIDE}"])


def _recipe_header(pictures: str) -> str:
    needs = f"It needs the pictures in {pictures}, and the store that {CONFIG} describes."
    return f"# A recipe of a training run. {needs}\n# Every key is here. {_INSIDE}\n"


def seen_from(folder: str, model: str) -> str:
    """A model as a config in `folder` names it: a relative path is changed, anything else stays."""
    place = expanded(model)
    if os.path.isabs(place) or not os.path.exists(place):
        return place
    found = os.path.relpath(os.path.join(os.path.realpath("."), place), os.path.realpath(folder))
    return found if found.startswith("..") else f"./{found}"


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made; what is there is replaced. Raises ResourceError if one cannot be written."""
    for name, content in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        except OSError as error:
            raise ResourceError(
                f"cannot write {folder / name}: {error.strerror or error}", "name a folder that you can write to"
            ) from error
