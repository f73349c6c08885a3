"""The output of a training run: one process that writes it, and the result of a run that is finished.

    <output>/train.lock        held while a run trains
    <output>/pipeline/         the result; with method: lora, lora/
    <output>/README.md         its model card
    <output>/train.json        written last: the result as JSON, the estimate, the recipe and the run's record

The lock is inside, so that no other name of the output leads past it, also where the output is mounted.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.api import open_store
from nullbooth_cli.datatypes import RESULT
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.model.after import After
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.store import is_url, open_backing
from nullbooth_cli.store.files import remove
from nullbooth_cli.training import checkpoint_files, durable
from nullbooth_cli.training.estimate import Estimate
from nullbooth_cli.training.record import OtherSettings, RunRecord

SCHEMA_VERSION = 2
MODEL = (*(field.name for field in fields(Base)), "after")
LOCK = "train"  # a lock is beside the place that it guards, with an ending of its own


@dataclass(frozen=True)
class Preserved:
    """What a constraint preserves: a number of prompts, under a threshold (`relative_threshold: 0.0001`, None if not known)."""

    prompts: int
    threshold: str | None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run: the folder that was written, and norm(dW K0) / norm(W0 K0) of each weight (None without a constraint).

    `model` and `method` are the recipe's, `pipeline` is the class of the model; `instance_prompt` is a prompt of the subject,
    `prompts` are all captions of its pictures, each once, and `token` is how prompts write the word that trained (None if none
    did). `word_in` are the text encoders of that word: parts of
    the pipeline, by the names of their rows in its file. `preserved` is None without a constraint. `after` is what the run went
    on from, as `output` records it; None for the model itself.
    """

    output: str
    steps: int
    method: str
    model: str
    trained: int
    token: str | None
    instance_prompt: str
    constrained_by: str | None
    preserved: Preserved | None
    drift: dict[str, float] | None
    pipeline: str = "StableDiffusionPipeline"  # the only class that earlier versions could train
    word_in: dict[str, str] | None = None
    prompts: tuple[str, ...] = ()  # earlier versions wrote none
    after: After | None = None

    @property
    def largest_drift(self) -> float | None:
        """The largest drift of all weights; NaN if one is NaN."""
        return float(np.max(list(self.drift.values()))) if self.drift else None

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        rest = asdict(self)
        drift = rest.pop("drift")
        after = None if self.after is None else self.after.document()
        return {"schema_version": SCHEMA_VERSION, **rest, "after": after, "largest_drift": self.largest_drift, "drift": drift}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], output: str) -> "TrainingResult":
        """The inverse of `document`, for a result that is in the folder `output` now."""
        values = {field.name: document[field.name] for field in fields(cls) if field.default is MISSING or field.name in document}
        preserved = None if values["preserved"] is None else Preserved(**values["preserved"])
        others = {"prompts": tuple(values.get("prompts", ())), "after": After.read(document)}
        return cls(**{**values, **others, "output": output, "preserved": preserved})


def is_first_process() -> bool:
    """Whether this process is alone, or the first of its launch."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def locked(output: str) -> Iterator[None]:
    """Hold an output alone for writing; of a launch, the first process does. Unfinished writes of killed runs are removed.

    Raises StoreError that names the holder; a killed holder leaves no lock behind. Raises ConfigError for a URL.
    """
    if is_url(output):
        raise ConfigError(f"output is {output}, and a run is trained into a folder", "set output to a folder")
    if not is_first_process():
        yield
        return
    with open_backing(Path(output) / LOCK).lock():
        with durable.writing(Path(output)):
            for leftover in Path(output).glob("checkpoint-*.partial"):
                remove(leftover)
        yield


def finished(recipe: Recipe, changes: Sequence[str] = (), *, takes_earlier: bool = False) -> TrainingResult | None:
    """The result in the recipe's output if it has all steps of the recipe; None if there is something to do.

    A result of fewer steps, of a run that was finished early, is something to do: the run resumes from its newest checkpoint.
    With `takes_earlier` it is not, if the run has done all its steps: somebody chose an earlier checkpoint.

    Raises ConfigError if it has done more steps than `max_train_steps`, if it has no checkpoint to resume from, and if it was
    made with other settings or inputs than those in `changes`. A model of another name is something to do: only its weights tell
    whether it is the same. Cost: that of `RunRecord.of`; no model is loaded.
    """
    path = Path(recipe.output) / RESULT
    checkpoint = checkpoint_files.find(recipe.output)
    require_steps_left(recipe, checkpoint.step if checkpoint else 0)
    if not path.exists():
        return None
    hint = f"move {path} away, and run this again: it is written again from the last checkpoint"
    written = durable.read_record(path, hint)
    if written["schema_version"] != SCHEMA_VERSION:
        raise StoreError(f"{path} was made by another version of nullbooth", hint)
    steps = written["steps"]
    require_steps_left(recipe, steps)
    if steps < recipe.max_train_steps and checkpoint is None:
        raise ConfigError(
            f"the run in {recipe.output} has done {steps} steps, and has no checkpoint to resume from",
            f"set max_train_steps to {steps}, or set another output",
        )
    is_chosen = takes_earlier and checkpoint is not None and checkpoint.step == recipe.max_train_steps
    if steps < recipe.max_train_steps and not is_chosen:
        return None
    before = RunRecord.from_document(written["run"])
    store = None if recipe.store is None else open_store(recipe.store)
    now = RunRecord.of(recipe, store, before.decides["processes"])
    now.resumed(recipe.output, before, steps, changes)
    # Earlier versions had no `after`; files that are put onto a model were compared by their content.
    by_name = [key for key in MODEL if key != "after" or now.decides[key] is None]
    named = {key: (written["recipe"].get(key), getattr(recipe, key)) for key in by_name}
    if other := {key: names for key, names in named.items() if names[0] != names[1]}:
        if checkpoint is None:
            raise OtherSettings(recipe.output, other)
        return None  # the caller loads the model, and compares its weights with those that the run began with
    place = place_of(recipe)
    if not place.is_dir():
        return None
    return TrainingResult.from_document(written, str(place))


def require_steps_left(recipe: Recipe, done: int) -> None:
    """Raise ConfigError if a run has done more steps than the recipe wants: its weights cannot go back."""
    if done > recipe.max_train_steps:
        raise ConfigError(
            f"the run in {recipe.output} has done {done} steps, more than max_train_steps: {recipe.max_train_steps}",
            f"set max_train_steps to {done} or more, or set another output",
        )


def place_of(recipe: Recipe) -> Path:
    """The folder of the result."""
    return Path(recipe.output) / ("lora" if recipe.method == "lora" else "pipeline")


def write_result(recipe: Recipe, record: RunRecord, result: TrainingResult, estimate: Estimate | None) -> None:
    """Write train.json; the folder of the result is there already. Raises ResourceError if that fails."""
    estimated = {"estimate": estimate.document() if estimate else None}
    document = {**result.document(), **estimated, "recipe": recipe.model_dump(mode="json"), "run": record.document()}
    with durable.replacing(Path(recipe.output) / RESULT) as partial:
        partial.write_text(durable.record_text(document))
