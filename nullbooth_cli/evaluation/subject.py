"""The subject of an evaluation: the prompts to draw it with, and the pictures that it was learned from.

The caller names them, or they are those of the training run that made the model:

    OUT/train.json                     the recipe of the run, and the token of its word
    OUT/pipeline, OUT/lora             the result
    OUT/checkpoint-000200/trained      what had been trained after 200 steps; base.json has a prompt, before train.json is there
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import CHECKPOINT, RESULT, TRAINED, Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.request import Instance, instances_in
from nullbooth_cli.model.edit_file import edit_record
from nullbooth_cli.model.pipeline_folder import read_json
from nullbooth_cli.model.trained_files import BASE_FILE, locate
from nullbooth_cli.model.words import has_word, with_token
from nullbooth_cli.settings.captions import captioned_images

INSIDE = re.compile(rf"pipeline|lora|{CHECKPOINT.pattern}(/{TRAINED})?")
MOST_PROMPTS = 4
NO_PROMPT, NO_PICTURES = "no prompt of a subject was given", "no pictures of the subject were given"


class NoSubject(ConfigError):
    """Pictures of a subject without any prompt of it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Prompts of a subject, and the pictures it was learned from; `missing` is the reason if there are no pictures."""

    prompts: tuple[Prompt, ...] = ()
    instances: tuple[Instance, ...] = ()
    missing: str = NO_PICTURES


def find_subject(places: Sequence[str], prompts: Sequence[Prompt] = (), instances: Path | None = None) -> Subject:
    """The subject of models: the prompts and the folder of pictures that are named, else those of a training run that made one.

    Raises NoSubject for pictures without any prompt, ConfigError for a folder, captions or a train.json that cannot be read.
    Cost: one read of every picture.
    """
    found = taught_subject(places) if not prompts or instances is None else Subject()
    if prompts:
        found = replace(found, prompts=tuple(prompts))
    if instances is not None:
        if not found.prompts:
            raise NoSubject(f"no subject is named, but pictures of it: {instances}", "name a prompt of the subject")
        found = replace(found, instances=instances_in(instances, found.prompts[0].text))
    return found


def output_of(place: str) -> Path | None:
    """The output of the training run that made the model at a place; None for any other place."""
    path = Path(place).expanduser()
    for folder in (path, *path.parents[:2]):
        is_inside = folder == path or INSIDE.fullmatch(path.relative_to(folder).as_posix())
        if is_inside and (folder / RESULT).is_file():
            return folder
    return None


def store_of(place: str) -> str | None:
    """The store whose projectors constrained the training run or the edit that made the model at a place, as its record says.

    None for any other place, for a run that has no result yet, and for one without a constraint.
    """
    folder = output_of(place)
    if folder is None:
        found = (edit_record(place) or {}).get("store")
        store = found.get("url") if isinstance(found, dict) else None
    else:
        recipe = read_json(folder / RESULT).get("recipe")
        store = recipe.get("store") if isinstance(recipe, dict) else None
    return store if isinstance(store, str) else None


def taught_subject(places: Sequence[str]) -> Subject:
    """The subject of the first of the models that a training run made; an empty one if there is none.

    The prompts are those of the recipe's `validation_prompts` that have its word, else its `instance_prompt` or the captions of
    the pictures, at most four. Raises and costs as `find_subject`.
    """
    folder = next((found for place in places if (found := output_of(place)) is not None), None)
    if folder is None:
        return _unfinished(places)
    document = read_json(folder / RESULT)
    recipe = document.get("recipe")
    if not isinstance(recipe, dict):
        raise ConfigError(f"{folder / RESULT} has no recipe", "train again, or name a prompt and the pictures of the subject")
    return _subject(recipe, document.get("token"))


def _unfinished(places: Sequence[str]) -> Subject:
    """The subject of a run that has no result yet: a prompt with its word, and no pictures."""
    found = (locate(Path(place).expanduser()) for place in places if Path(place).expanduser().exists())
    files = (each.path / BASE_FILE for each in found)
    prompts = (read_json(file).get("instance_prompt") for file in files if file.is_file())
    prompt = next((prompt for prompt in prompts if isinstance(prompt, str)), None)
    missing = "the training run has no result yet, and only the result names its pictures"
    return Subject() if prompt is None else Subject(prompts=(Prompt(prompt),), missing=missing)


def _subject(recipe: Mapping[str, Any], token: str | None) -> Subject:
    word, prompt = recipe.get("word"), recipe.get("instance_prompt")

    def written(text: str) -> str:
        return text if word is None or token is None else with_token(text, word, token)

    instances: tuple[Instance, ...] = ()
    missing = NO_PICTURES
    try:
        images = captioned_images(recipe["instance_images"], "instance_images", prompt)
        instances = tuple(Instance(image.path, written(image.prompt.text)) for image in images)
    except ConfigError as error:
        missing = f"those of the training run cannot be read: {error.message}"
    validation = [written(text) for text in recipe.get("validation_prompts", ()) if word is not None and has_word(text, word)]
    captions = [written(prompt)] if prompt else [instance.caption for instance in instances]
    prompts = tuple(map(Prompt, dict.fromkeys(validation or captions)))[:MOST_PROMPTS]
    return Subject(prompts=prompts, instances=instances if prompts else (), missing=missing)
