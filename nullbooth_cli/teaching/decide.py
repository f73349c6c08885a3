"""What `teach` decides from a request: a config, a recipe and prompts, which `decision.py` keeps as ordinary files.

What starts from another output takes over its config, recipe and prompts, as they are there now. Another request for an output
that has a decision is refused.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.settings.captions import captioned_images, has_captions
from nullbooth_cli.settings.class_prompts import class_prompts
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.places import expanded
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.settings.shipped import PREFIX, shipped
from nullbooth_cli.settings.starter import RECIPE
from nullbooth_cli.teaching.decision import REQUEST, STORE, Decision, places_in, read, texts_in
from nullbooth_cli.teaching.request import HELDOUT_EVERY, TeachRequest
from nullbooth_cli.teaching.start import Start
from nullbooth_cli.training.output import finished

DEMO = "instances/toy_varied"  # pictures that the embedded model can be taught
ON_CPU = {"mixed_precision": "no", "dtype": "float32", "optimizer": "adamw"}  # in place of what GPUs are for
DECIDED = {  # by what the request says, not by settings
    "model": "model",
    "after": "after",
    "store": "output",
    "output": "output",
    "instance_images": "pictures",
    "instance_prompt": "caption",
    "word": "word",
    "original_knowledge_prompts": "preserve",
    "heldout_prompts": "preserve",
}


def find(given: Mapping[str, Any], output: str, *, on_cpu: bool) -> Decision:
    """The decision that an output has, else a new one. `given` are the fields of the request that the user names.

    Raises ConfigError if they are not those that the output was made for, and as `decide` does.
    """
    found, given = read(output), _located(given)
    if found is None:
        is_demo = given.get("model", "toy") == "toy" and "after" not in given
        pictures = {"pictures": str(shipped(DEMO))} if is_demo else {}
        if not {**pictures, **given}.get("pictures"):
            raise ConfigError("no pictures are named", "name a folder of pictures of the subject")
        if "after" in given:
            return _decide_after(given, output)
        return decide(validate(TeachRequest, {**pictures, **given}, source="the request"), output, on_cpu=on_cpu)
    before = found.request.model_dump()
    wanted = validate(TeachRequest, {**before, **given}, source="the request").model_dump()
    if changed := {key: (before[key], value) for key, value in wanted.items() if before[key] != value}:
        lines = "".join(f"\n  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{output} was made for another request{lines}",
            f"name another output, with after: {output} if its model is to learn this as well; or leave out what differs "
            f"(steps and how it trains can be changed in {Path(output) / RECIPE})",
        )
    return found


def _located(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the whole path of each folder and file: a request is the same from every current folder."""
    found = dict(given)
    if found.get("pictures"):
        found["pictures"] = os.path.abspath(expanded(found["pictures"]))
    if found.get("after"):
        found["after"] = os.path.abspath(expanded(found["after"]))
    if found.get("preserve"):
        found["preserve"] = [path if path.startswith(PREFIX) else os.path.abspath(expanded(path)) for path in found["preserve"]]
    return found


def decide(request: TeachRequest, output: str, *, on_cpu: bool) -> Decision:
    """The decision for a new output; `on_cpu` trains without mixed precision. Writes nothing.

    Raises ConfigError for pictures, captions and prompts that cannot be read and for settings that do not exist, ModelError for
    the name of a model that cannot be trained.
    """
    of_recipe, of_config = _settings(request.settings)
    start = Start.of(request.model, of_recipe)
    is_captioned = has_captions(request.pictures, "pictures")
    if is_captioned and not request.caption:
        captioned_images(request.pictures, "pictures")
    kind, noun = request.kind, request.noun or request.kind.noun
    given = [prompt.text for path in request.preserve for prompt in load_prompts(path, "preserve")]
    of_class = class_prompts(noun) if noun else []
    known = list(dict.fromkeys([*given, *_texts(kind.preserved), *(of_class if kind.noun is None else [])]))
    heldout = _texts([kind.heldout]) if kind.heldout else known[HELDOUT_EVERY - 1 :: HELDOUT_EVERY]
    preserved = [text for text in known if text not in set(heldout)]
    decided = {**kind.settings, **_decided(request, output), "validation_prompts": [*request.subject_prompts[:2], preserved[0]]}
    notes = [f"preserves {counted(len(preserved), 'prompt')}, and holds out {len(heldout)} to measure what was forgotten"]
    if noun is None:
        notes.append(f"no class is named: only general prompts preserve what is like '{request.word}'")
    recipe = _recipe(start, decided, of_recipe, on_cpu=on_cpu)
    return Decision(
        output=output,
        request=request,
        config=_config(start, request, recipe, of_config, on_cpu=on_cpu),
        recipe=recipe,
        preserved=preserved,
        heldout=heldout,
        subject=request.subject_prompts,
        is_new=True,
        notes=tuple(notes),
    )


def _taught_before(place: str) -> Decision:
    """The decision of an output that was taught before. Raises ConfigError for one that was not, or not to its end."""
    found = read(place)
    if found is None:
        raise ConfigError(
            f"{place} is not the output of teaching: it has no {REQUEST}",
            "name one, or train by a recipe whose `after` names it, under a store that remembers it",
        )
    if finished(found.recipe, takes_earlier=True) is None:
        raise ConfigError(f"{place} is not taught to its end", "finish it first: the same request again resumes")
    return found


def _decide_after(given: Mapping[str, Any], output: str) -> Decision:
    """The decision for an output that starts from another one. Writes nothing. Raises ConfigError as `decide` does."""
    before = _taught_before(given["after"])
    request = validate(TeachRequest, {"model": before.request.model, **given}, source="the request")
    if request.model != before.request.model:
        raise ConfigError(
            f"{request.after} is a model of {before.request.model}, and {request.model} is named", "leave the model out"
        )
    of_recipe, of_config = _settings(request.settings)
    if "threshold" in request.model_fields_set:
        of_config = [f"project.relative_threshold={request.threshold}", *of_config]
    of_class = class_prompts(request.noun) if request.noun and request.kind.noun is None else []
    more = [prompt.text for path in request.preserve for prompt in load_prompts(path, "preserve")]
    known = dict.fromkeys([*before.preserved, *more, *of_class])
    preserved = [text for text in known if text not in set(before.heldout)]
    validation = [*request.subject_prompts[:2], before.written_subject[0]]
    decided = {**_decided(request, output), "after": request.after, "validation_prompts": validation}
    new = len(preserved) - len(before.preserved)
    return Decision(
        output=output,
        request=request,
        config=build_config(before.config.model_dump() | places_in(output), of_config, f"the config of {request.after}"),
        recipe=validate(Recipe, before.recipe.model_dump() | decided, of_recipe, f"the recipe of {request.after}"),
        preserved=preserved,
        heldout=before.heldout,
        subject=request.subject_prompts,
        earlier=[*before.earlier, *before.written_subject],
        is_new=True,
        notes=(f"starts from {request.after}: preserves its prompts, {counted(new, 'more prompt')}, and what it was taught",),
    )


def _texts(names: Iterable[str]) -> list[str]:
    return [text for name in names for text in texts_in(shipped(name))]


def _settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of the recipe's keys, and those of the config's."""
    of_recipe: list[str] = []
    of_config: list[str] = []
    for setting in settings:
        key = setting.partition("=")[0].strip().split(".")[0]
        if key in DECIDED:
            raise ConfigError(f"{key} cannot be set: it follows from the request", f"give what it follows from: {DECIDED[key]}")
        (of_recipe if key in Recipe.model_fields or key not in Config.model_fields else of_config).append(setting)
    return of_recipe, of_config


def _config(start: Start, request: TeachRequest, recipe: Recipe, settings: Sequence[str], *, on_cpu: bool) -> Config:
    """The shipped config, reduced to the inputs of to_k and to_v and of what the recipe trains beside them.

    Those of to_k and to_v without joint attention are the text, so that no denoiser draws.
    """
    features = {f"{feature}_features": feature in ("k", "v", *recipe.features) for feature in ("q", "k", "v", "out")}
    inputs = {"collect_features": features, "linear_layers": recipe.linear_layers}
    reads_pictures = start.is_joint or bool(recipe.linear_layers or {*recipe.features} - {"k", "v"})
    drawn = {key: value for key, value in start.recipe.items() if key == "guidance_scale"}  # as in training
    data = {
        **start.config,
        "model": start.model,
        **places_in(recipe.output),
        # What reads a picture may have no null space, which is known only after hours: its weights then stay as they are.
        "project": {"relative_threshold": request.threshold, **({"empty": "freeze"} if reads_pictures else {})},
        "collect": {**start.config["collect"], **drawn, **inputs, "keep": "moments"},
    }
    if on_cpu or not start.is_joint:
        data["dtype"] = "float32"  # a threshold this small lies below the noise of half precision, which is slow on a CPU
    return build_config(data, settings, f"the config for {request.model}")


def _decided(request: TeachRequest, output: str) -> dict[str, Any]:
    """The keys of the recipe that follow from the request."""
    decided: dict[str, Any] = {
        "store": str(Path(output) / STORE),
        "output": output,
        "instance_images": request.pictures,
        "instance_prompt": request.subject if request.caption or not has_captions(request.pictures, "pictures") else None,
        "resize": request.resize,
        "word": request.word,
    }
    if request.method is not None:
        decided["method"] = request.method
    if request.steps is not None:
        decided |= {"max_train_steps": request.steps, "checkpointing_steps": max(1, request.steps // 4)}
    return decided


def _recipe(start: Start, decided: Mapping[str, Any], settings: Sequence[str], *, on_cpu: bool) -> Recipe:
    """The shipped recipe with the pictures, the word and the store of the request."""
    data = {**start.recipe, "model": start.model, **decided}
    if on_cpu:
        data |= {key: value for key, value in ON_CPU.items() if key in data}
    return validate(Recipe, data, settings, f"the recipe for {start.model}")
