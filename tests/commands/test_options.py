"""Every option reaches the field that it stands for."""

from dataclasses import fields
from typing import Any

import pytest

from nullbooth_cli.commands import run_stages
from nullbooth_cli.commands.options import Common, Control
from tests.support.cli import nullbooth

SHARED = ["-c", "c.yaml", "-s", "run.zarr", "--set", "a=1", "--set", "b=2", "--json", "-q", "-v"]
COMMON = Common(config="c.yaml", store="run.zarr", overrides=["a=1", "b=2"], as_json=True, quiet=True, verbose=True)
STAGE = ["--device", "cpu", "--dry-run", "--force", "--yes"]
OF_STAGE = {"device": "cpu", "dry_run": True, "force": True, "yes": True}
OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "run": ([], {}),
    "schedule": ([], {}),
    "collect": (
        ["--limit", "3", "--repair", "--auto-batch", "--shard", "1/2"],
        {"limit": 3, "repair": True, "auto_batch": True, "shard": "1/2"},
    ),
    "covariance": (["--limit", "4", "--repair", "--release"], {"limit": 4, "repair": True, "release": True}),
    "project": (
        ["--limit", "5", "--explore", "--sites", "--plot", "x.png"],
        {"limit": 5, "explore": True, "sites": True, "plot": "x.png"},
    ),
}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_stage_gets_what_the_command_line_says(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[tuple[str, ...], Common, Control]] = []
    monkeypatch.setattr(run_stages, "run_stages", lambda *given: called.append(given))
    more, of_command = OPTIONS[command]
    assert nullbooth(command, *SHARED, *STAGE, *more).exit_code == 0
    stages = ("schedule", "collect", "covariance", "project") if command == "run" else (command,)
    assert called == [(stages, COMMON, Control(**OF_STAGE, **of_command))]


@pytest.mark.parametrize("command", OPTIONS)
def test_without_options_nothing_is_asked_for(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run_stages, "run_stages", lambda *given: called.append(given[1:]))
    assert nullbooth(command).exit_code == 0
    assert called == [(Common(), Control())]


def test_every_field_of_a_stage_has_an_option() -> None:
    named = set(OF_STAGE).union(*(of_command for _, of_command in OPTIONS.values()))
    assert {field.name for field in fields(Control)} == named
