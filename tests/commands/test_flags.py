"""The flags are frozen: a new one is a decision, made by a line of this table."""

import pytest
import typer

from nullbooth_cli.cli import app

SHARED = "-c/--config -s/--store --set --json -q/--quiet -v/--verbose"
STAGE = "--device --dry-run --force --yes"
# Commands in the order of the help, with their arguments in capitals and the options beside the shared ones.
FLAGS = {
    "init": ("DIR --model --ai-toolkit --force --json -q/--quiet",),
    "teach": (
        "PICTURES -o/--output --word --class --model --after --preserve --caption --no-crop --lora --steps --set --push-to-hub",
        "--device --dry-run --json -q/--quiet -v/--verbose",
    ),
    "run": (SHARED, STAGE),
    "schedule": (SHARED, STAGE),
    "collect": (SHARED, STAGE, "--limit --auto-batch --shard --repair"),
    "covariance": (SHARED, STAGE, "--limit --repair --release"),
    "project": (SHARED, STAGE, "--limit --explore --sites --plot"),
    "inspect": (
        SHARED,
        "STORE --device --layer --feature --timestep --site --layers --csv --plots --format --attention --html --lora",
    ),
    "status": (SHARED, "--check --watch --interval --verify"),
    "doctor": (SHARED, "--device"),
    "merge": ("STORE -s/--store --set --json -q/--quiet",),
    "export": (SHARED, "OUT --dense --dtype --layer --feature --only-covariance --force"),
    "import": ("FOLDER -c/--config -s/--store --set --json -q/--quiet",),
    "edit": (
        SHARED,
        "SOURCE_TARGET --device -o/--output --map --erase --to --debias --over --pairs --method --tokens --ridge --preserve",
        "--copies --around --after --max-missing --dry-run",
    ),
    "train": (SHARED, "--device --dry-run --resume-with --finish --push-to-hub"),
    "remember": (SHARED, "MODEL PROMPT --device --word --name --weight --soft --forget --dry-run"),
    "refit": (SHARED, "FILE --device -o/--output --prompts --word --m --outside --num-drawn --dry-run"),
    "evaluate": (
        SHARED,
        "EDITED --device --against --prompts --subject --subject-prompts --subject-images --instances --num-prompts",
        "--features --html --images --checkpoints --edits --paraphrases --base",
    ),
    "sample": (
        "MODEL PROMPT -o/--output --base --with-base --compare --seed --seeds --steps --guidance --scheduler --images --device",
        "--set --json -q/--quiet",
    ),
}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group


def test_the_commands_and_their_order() -> None:
    assert list(COMMANDS) == list(FLAGS)


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_of_a_command(command: str) -> None:
    named = {
        "/".join(parameter.opts) if parameter.param_type_name == "option" else parameter.metavar.replace(" ", "_")
        for parameter in COMMANDS[command].params
    }
    assert named == set(" ".join(FLAGS[command]).split())
