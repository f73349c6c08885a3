"""The trackers of a training run (TensorBoard, Weights & Biases and others), as accelerate has them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError, NullboothError
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import durable
from nullbooth_cli.training.setup import TrainingRun


@contextlib.contextmanager
def started(run: TrainingRun) -> Iterator[None]:
    """Start the recipe's trackers, each with the recipe, and end them.

    Raises ConfigError for one that cannot be started (no account, no server), ResourceError if its files cannot be written.
    """
    recipe, accelerator = run.recipe, run.accelerator
    if not recipe.trackers:
        yield
        return
    try:
        with durable.writing(Path(recipe.output)):
            accelerator.init_trackers("nullbooth", config=_plain(recipe))
    except NullboothError:
        raise
    except Exception as error:  # nine packages, without a common base class; an unknown error keeps its own text
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"report_to: {', '.join(recipe.trackers)} cannot be started: {text}",
            "log in as the tracker asks for, or set report_to to null: train.jsonl has the loss of every step",
        ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as trackers take it: numbers and texts."""
    values = recipe.model_dump(mode="json").items()
    return {key: value if isinstance(value, str | int | float) else str(value) for key, value in values}
