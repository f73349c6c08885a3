"""What decides the weights of a training run: a run resumes only from a checkpoint of the same record.

Settings that leave the weights as they are (`FREE`) are not part of it. What a path names is compared by its content
(`BY_CONTENT`), so that the model, the store, the pictures and the output may be moved. `CHANGEABLE` settings may change in a run
that is under way, if the caller says so; the history has every change.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.settings.captions import captioned_images
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training.earlier import Earlier

FREE = (
    "output",
    "local_files_only",
    "allow_pickle",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_prompts",
    "report_to",
    "gradient_checkpointing",
)
STEPS = "max_train_steps"  # more steps continue the same run; the history has the change
BY_CONTENT = (
    "model",
    "revision",
    "variant",
    "pipeline_config",
    "after",
    "store",
    "instance_images",
    "instance_prompt",
    "class_prompts",
    "distill_pictures",
)
WITH_LORA = ("rank",)
WITH_WORD = ("word_learning_rate", "word_encoders")
WITH_CLASS = ("class_images", "prior_weight", "validation_inference_steps", "guidance_scale")
WITH_DISTILLATION = ("distill_captions", "distill_weight", "trigger", "class_word")
CHANGEABLE = (
    "learning_rate",
    "word_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_weight_decay",
    "max_grad_norm",
    "prior_weight",
    "distill_weight",
    "train_batch_size",
    "gradient_accumulation_steps",
)
_DEFAULTS = {key: field.default for key, field in Recipe.model_fields.items()}


class OtherSettings(ConfigError):
    """A run in an output was made with other settings or inputs. `changed`: the fields, each with the old and new value."""

    def __init__(self, output: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
        lines = "".join(f"\n  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        super().__init__(
            f"the run in {output} was made with other settings or inputs{lines}", "put them back, or set another output"
        )
        self.output, self.changed = output, changed


class ProjectorsByWeight(Protocol):
    """A store, as a record reads it."""

    def projectors(self, model: Mapping[str, Any] | None = None) -> Mapping[str, Projector]:
        """The projector of each weight, by name."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`decides`: the settings and the digests of the inputs that decide the weights. `steps`: how many are wanted.

    `history`: the changes that were made on purpose, each as {"step": the step it was made at, field: [old, new]}.
    """

    decides: Mapping[str, Any]
    steps: int
    history: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, store: ProjectorsByWeight | None, processes: int) -> "RunRecord":
        """The record of a recipe, before its model is loaded.

        Cost: one read of every picture, of the store's projectors, and of the files that it starts from.
        """
        earlier = Earlier.of(recipe)
        unused = (
            *(WITH_LORA if recipe.method != "lora" else ()),
            *(WITH_WORD if recipe.word is None else ()),
            *(WITH_CLASS if recipe.class_prompts is None else ()),
            *(WITH_DISTILLATION if recipe.distill_captions is None else ()),
        )
        settings = recipe.model_dump(mode="json", exclude={*FREE, STEPS, *BY_CONTENT, *unused})
        settings |= {key: sorted(settings[key]) for key in ("features", "linear_layers")}  # their order decides nothing
        inputs = {
            "pictures and captions": _pictures(recipe.instance_images, "instance_images", recipe.instance_prompt),
            "class_prompts": _class_prompts(recipe),
            "after": None if earlier is None else earlier.digest,  # of a pipeline, the weights of the model tell
            "projectors": None if store is None else _projectors(store),
            "processes": processes,
        }
        if recipe.distill_captions is not None:
            of_folder = recipe.distill_pictures not in ("instance", "class")
            distilled = _pictures(recipe.distill_pictures, "distill_pictures") if of_folder else recipe.distill_pictures
            inputs["pictures for distillation"] = distilled
        return cls(decides={**settings, **inputs}, steps=recipe.max_train_steps)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "RunRecord":
        """The inverse of `document`."""
        return cls(decides=document["decides"], steps=document["steps"], history=tuple(document["history"]))

    def document(self) -> dict[str, Any]:
        """The record as JSON."""
        return {"decides": dict(self.decides), "steps": self.steps, "history": list(self.history)}

    def with_model(self, digest: str) -> "RunRecord":
        """This record with the digest of the weights that the model was loaded with."""
        return replace(self, decides={**self.decides, "weights of the model": digest})

    def resumed(self, output: str, before: "RunRecord", step: int, changes: Sequence[str]) -> "RunRecord":
        """This record with the history of the one that it resumes at `step`; fields in `changes` may differ.

        A setting that the former record has not, because it is newer, had its default. Raises OtherSettings if another field of
        this record differs.
        """
        former = {**_DEFAULTS, **before.decides}
        changed = {key: (former.get(key), new) for key, new in self.decides.items() if former.get(key) != new}
        if refused := {key: values for key, values in changed.items() if key not in changes}:
            raise OtherSettings(output, refused)
        if before.steps != self.steps:
            changed[STEPS] = before.steps, self.steps
        new = ({"step": step, **{key: list(values) for key, values in changed.items()}},) if changed else ()
        return replace(self, history=(*before.history, *new))

    def changed_at(self, step: int) -> list[str]:
        """A line for each field that was changed on purpose at a step."""
        return [
            f"{key}: {values[0]} -> {values[1]}"
            for change in self.history
            if change["step"] == step
            for key, values in change.items()
            if key != "step"
        ]


def require_changeable(changes: Sequence[str]) -> None:
    """Raise ConfigError for a setting that cannot change in a run that is under way."""
    if fixed := [key for key in changes if key not in CHANGEABLE]:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change in a run that is under way",
            f"set another output; a run that resumes may change {', '.join(CHANGEABLE)}",
        )


def _pictures(folder: str, key: str, caption: str | None = None) -> str:
    pictures = captioned_images(folder, key, caption)
    # In their order: it decides which of them a step draws.
    found = [[picture.prompt.image, picture.prompt.text, picture.repeats] for picture in pictures]
    return f"{counted(len(found), 'picture')}, digest {fingerprint(found)}"


def _class_prompts(recipe: Recipe) -> str | None:
    if recipe.class_prompts is None:
        return None
    texts = [prompt.text for prompt in load_prompts(recipe.class_prompts, "class_prompts")]
    return f"{counted(len(texts), 'prompt')}, digest {fingerprint(texts)}"


def _projectors(store: ProjectorsByWeight) -> str:
    digests: dict[int, str] = {}  # the weights of a site share one projector
    found = store.projectors()
    for projector in found.values():
        if id(projector) not in digests:
            content = hashlib.sha256(f"{projector.is_complement}:{projector.factor.shape}".encode())
            content.update(np.ascontiguousarray(projector.factor).data)
            digests[id(projector)] = content.hexdigest()
    return f"{counted(len(found), 'weight')}, digest {fingerprint({name: digests[id(p)] for name, p in sorted(found.items())})}"
