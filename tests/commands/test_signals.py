"""Ctrl-C and SIGTERM: at once, or after the unit whose result is not on disk; a second one at once; exit codes 130 and 143."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from nullbooth_cli.commands import signals
from nullbooth_cli.progress import Interrupts
from tests.support.builders import ROOT
from tests.support.cli import start

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """After an interrupt a command leaves its handlers: its process ends. This one goes on."""
    before = {number: signal.getsignal(number) for number in signals.EXIT_CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def body(interrupts: Interrupts, said: list[str], *numbers: int) -> None:
    """A command that gets these signals, and then has finished its unit."""
    with signals.interruptible(interrupts, said.append, "the step that runs"):
        for number in numbers:
            os.kill(os.getpid(), number)
        said.append("finished")


@BOTH
def test_at_once_if_all_is_written(number: int) -> None:
    said: list[str] = []
    with pytest.raises(typer.Exit) as caught:
        body(Interrupts(), said, number)
    assert caught.value.exit_code == 128 + number
    assert said == []


@BOTH
def test_after_the_unit_if_not(number: int) -> None:
    interrupts, said = Interrupts(unwritten=True), list[str]()
    body(interrupts, said, number, number)  # within a second they are one
    assert interrupts.requested
    assert said == [
        "interrupted: finishing and writing the step that runs; Ctrl-C again stops at once and loses it",
        "finished",
    ]


@BOTH
def test_a_second_one_ends_it(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
    said: list[str] = []
    with pytest.raises(typer.Exit) as caught:
        body(Interrupts(unwritten=True), said, number, number)
    assert caught.value.exit_code == 128 + number
    assert "finished" not in said


@BOTH
def test_the_exit_code_is_ours_also_in_an_exec(number: int, tmp_path: Path) -> None:
    """As dataclasses are made while modules are imported: SIGTERM at that moment ended `python -m` with 130."""
    (tmp_path / "program.py").write_text(f"""
import typer
from nullbooth_cli.commands.signals import interruptible
from nullbooth_cli.progress import Interrupts
try:
    with interruptible(Interrupts(), print, ""):
        exec("import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(9)")
except typer.Exit as error:
    raise SystemExit(error.exit_code)
""")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with start([sys.executable, "-m", "program"], env=environment) as process:
        assert process.wait() == 128 + number


def test_an_ignored_one_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said: list[str] = []
    body(Interrupts(), said, signal.SIGINT)
    assert said == ["finished"]
