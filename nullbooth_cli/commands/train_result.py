"""What `nullbooth train` says of a result, and of a run that was stopped."""

import contextlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nullbooth_cli.formatting import counted, percent

if TYPE_CHECKING:
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.training.output import TrainingResult
    from nullbooth_cli.training.record import OtherSettings


def answer(terminal: "Terminal", recipe: "Recipe", result: "TrainingResult") -> None:
    """Print the result and what can be done with it next."""
    terminal.answer(result.document(), lambda _: summary(result))
    terminal.next(shlex.join(["nullbooth", "sample", recipe.output, result.instance_prompt]))
    if result.constrained_by:
        terminal.next(
            shlex.join(["nullbooth", "evaluate", result.output, "-s", result.constrained_by, "--subject", result.instance_prompt])
        )


def summary(result: "TrainingResult") -> str:
    """The result in a sentence or two."""
    kind = "the LoRA" if result.method == "lora" else "the taught pipeline"
    word = f" and the word {result.token}" if result.token else ""
    weights = counted(result.trained, "weight")
    taught = f"{result.output} is {kind}: {counted(result.steps, 'step')} trained {weights}{word}"
    if result.preserved is None or result.largest_drift is None:
        return f"{taught}, without a constraint"
    return (
        f"{taught}. On the {counted(result.preserved.prompts, 'preserved prompt')} their outputs moved by "
        f"{percent(result.largest_drift)} of their size at most"
    )


@contextlib.contextmanager
def offering_the_model(terminal: "Terminal", output: str, options: list[str]) -> Iterator[None]:
    """After an interrupt, tell how to get the model of the newest checkpoint; `options` name the recipe."""
    try:
        yield
    except KeyboardInterrupt:
        from nullbooth_cli.training import checkpoint_files

        if steps := checkpoint_files.steps(output):
            command = shlex.join(["nullbooth", "train", *options, "--finish", str(steps[-1])])
            terminal.note(f"for the model as it is after {counted(steps[-1], 'step')}: {command}")
        raise


def hint_of_changed(error: "OtherSettings") -> str:
    """The hint of changed settings; those that may change in a run that is under way have an option for it."""
    from nullbooth_cli.training.record import CHANGEABLE

    if not set(error.changed) <= set(CHANGEABLE):
        return error.hint
    options = " ".join(f"--resume-with {key}={new}" for key, (_, new) in error.changed.items())
    return f"{error.hint}; to resume with the new values: {options}"
