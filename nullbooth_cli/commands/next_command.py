"""The commands that a person would type next, as lines that can be pasted.

RECIPE, VALUE, PROMPT and REFITTED stand for what only they know.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nullbooth_cli.commands.hints import options_of
from nullbooth_cli.pipeline.state import StageState
from nullbooth_cli.settings.starter import RECIPE

# What reads an exported file, by its format.
READERS = {
    "safetensors": "from safetensors.torch import load_file; print(load_file({path!r}).keys())",
    "alphaedit": "import torch; print(torch.load({path!r}).shape)",
    "folder": "from pathlib import Path; print(*sorted(Path({path!r}).rglob('*.npy')), sep='\\n')",
}


def after_a_stage(states: Mapping[str, StageState], options: Sequence[str], store: str) -> list[str]:
    """The first stage that is not complete; with all of them complete, a look at the result, or its use."""
    for stage, found in states.items():
        if not found.is_done:
            return [_command(stage, *options, *["--force"] * (found.state == "stale"))]
    return [_command("inspect", *options), _train(store)]


def after_status(states: Mapping[str, StageState], options: Sequence[str], store: str) -> list[str]:
    """As after a stage, but all that is missing at once, if it is more than one stage and nothing is to be replaced."""
    left = [found for found in states.values() if not found.is_done]
    if len(left) > 1 and all(found.state != "stale" for found in left):
        return [_command("run", *options)]
    return after_a_stage(states, options, store)


def after_doctor(states: Mapping[str, StageState], options: Sequence[str], store: str) -> list[str]:
    """The run that was checked, or what follows it if it is complete."""
    return after_a_stage(states, options, store) if all(f.is_done for f in states.values()) else [_command("run", *options)]


def after_inspect(options: Sequence[str], store: str) -> list[str]:
    """Another threshold, or the use of this one."""
    return [_command("project", *options, "--explore"), _train(store)]


def another_threshold(options: Sequence[str], rule: str) -> str:
    """What puts a threshold of the ladder in force."""
    return _command("project", *options, "--set", f"project.{rule}=VALUE", "--force")


def run_them(stages: Sequence[str], options: Sequence[str], force: bool) -> str:
    """The run of the stages whose cost was shown."""
    return _command(stages[0] if len(stages) == 1 else "run", *options, *["--force"] * force)


def check(options: Sequence[str]) -> str:
    """Whether the run would start."""
    return _command("doctor", *options)


def of_the_new_store(place: str, overrides: Sequence[str]) -> str:
    """The projectors of a store that was made of moments."""
    return _command("project", *options_of([("-s", place), *(("--set", override) for override in overrides)]))


def measure(edited: str, options: Sequence[str], subject: str | None = None) -> str:
    """What an edited model forgot and learned; an edit needs no subject, because its record has its prompts."""
    return _command("evaluate", edited, *options, *([] if subject is None else ["--subject", subject]))


def after_lora(file: str, options: Sequence[str], *, helps: bool) -> list[str]:
    """A refit of a finished change, if it `helps`, and what shows it in pictures."""
    refit = _command("refit", file, *options, "--prompts", "PROMPT", "-o", "REFITTED")
    return [*([refit] if helps else []), measure(file, options, "PROMPT")]


def finish(output: str, step: int) -> str:
    """What makes the checkpoint of a step the result of its run: of one whose output has its recipe, or RECIPE."""
    recipe = Path(output, RECIPE)
    return _command("train", "-c", str(recipe) if recipe.is_file() else "RECIPE", "--finish", str(step))


def read_export(form: str, path: str) -> str:
    """A look into an exported file or folder, in Python: the beginning of what uses it."""
    return shlex.join(["python", "-c", READERS[form].format(path=path)])


def _train(store: str) -> str:
    """Training under a store: ./train.yaml is found without a name."""
    return _command("train", *(() if Path(RECIPE).is_file() else ("-c", "RECIPE")), "-s", store)


def _command(*words: str) -> str:
    return shlex.join(["nullbooth", *words])
