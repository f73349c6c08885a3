"""The command that follows each command: what a user would do, as a line that the parser takes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nullbooth_cli.cli import app
from nullbooth_cli.commands import next_command
from nullbooth_cli.pipeline.state import StageState
from nullbooth_cli.settings.config import STAGES
from tests.support.cli import nullbooth

OPTIONS = ("-c", "my config.yaml")


def states(**changes: str) -> dict[str, StageState]:
    """All stages complete, but for those named."""
    return {stage: StageState(stage=stage, state=changes.get(stage, "complete"), units_done=1, units_total=1) for stage in STAGES}


COMPLETE = ["nullbooth inspect -c 'my config.yaml'", "nullbooth train -c RECIPE -s runs/a.zarr"]


@pytest.mark.parametrize(
    ("found", "after_a_stage", "after_status"),
    [
        (states(), COMPLETE, COMPLETE),
        (states(project="missing"), ["nullbooth project -c 'my config.yaml'"], ["nullbooth project -c 'my config.yaml'"]),
        (
            states(collect="partial", covariance="missing", project="missing"),
            ["nullbooth collect -c 'my config.yaml'"],
            ["nullbooth run -c 'my config.yaml'"],
        ),
        (
            states(covariance="stale", project="stale"),
            ["nullbooth covariance -c 'my config.yaml' --force"],
            ["nullbooth covariance -c 'my config.yaml' --force"],
        ),
    ],
    ids=["complete", "one is missing", "several are missing", "stale"],
)
def test_after_a_stage_and_after_status(found: dict[str, StageState], after_a_stage: list[str], after_status: list[str]) -> None:
    assert next_command.after_a_stage(found, OPTIONS, "runs/a.zarr") == after_a_stage
    assert next_command.after_status(found, OPTIONS, "runs/a.zarr") == after_status


def test_after_doctor() -> None:
    assert next_command.after_doctor(states(project="missing"), OPTIONS, "runs/a.zarr") == ["nullbooth run -c 'my config.yaml'"]
    assert next_command.after_doctor(states(), OPTIONS, "runs/a.zarr") == COMPLETE


def test_the_run_whose_cost_was_shown() -> None:
    assert next_command.run_them(("collect",), OPTIONS, force=True) == "nullbooth collect -c 'my config.yaml' --force"
    assert next_command.run_them(STAGES, (), force=False) == "nullbooth run"


def test_a_new_store_is_named_as_a_shell_reads_it_and_without_credentials() -> None:
    command = next_command.of_the_new_store("my store.zarr", ["storage_options.key=abc", "project.null_dim=3"])
    assert command == "nullbooth project -s 'my store.zarr' --set project.null_dim=3"


def test_each_is_a_command() -> None:
    group = typer.main.get_command(app)
    for line in (
        *COMPLETE,
        *next_command.after_inspect(OPTIONS, "runs/a.zarr"),
        next_command.another_threshold(OPTIONS, "null_dim"),
        next_command.check(OPTIONS),
        next_command.measure("edited", OPTIONS, "a sks star"),
    ):
        _, name, *arguments = shlex.split(line)
        with group.make_context("nullbooth", [name]) as context:
            command = group.get_command(context, name)  # type: ignore[attr-defined]  # it is a group
            command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(
    ("out", "shown"), [("p.safetensors", "'mid_block"), ("p.pt", "torch.Size"), ("folder", "_projection.npy")]
)
def test_an_export_is_read_by_the_line_that_follows_it(done: str, tmp_path: Path, out: str, shown: str) -> None:
    layer = ["--layer", "mid_block*", "--feature", "q"] if out.endswith(".pt") else []
    exported = nullbooth("export", str(tmp_path / out), "-s", done, *layer)
    assert exported.exit_code == 0, exported.stderr
    [line] = re.findall(r"^next: python (.*)$", exported.stderr, re.MULTILINE)
    ran = subprocess.run([sys.executable, *shlex.split(line)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert shown in ran.stdout


def test_a_recipe_beside_the_user_needs_no_name(done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").touch()
    assert "\nor:   nullbooth train -s " in nullbooth("inspect", "-s", done).stderr


def test_what_follows_is_said_in_no_json_document_and_not_if_quiet(done: str) -> None:
    assert "\nor:   nullbooth train -c RECIPE -s " in nullbooth("inspect", "-s", done).stderr
    for flag in ("--json", "-q"):
        assert "next:" not in nullbooth("inspect", "-s", done, flag).stderr
