"""What `status --watch` shows: a view that fits the terminal, a line for a log, a JSON document for a program."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.status_watch import draw_watch, watch_line
from nullbooth_cli.pipeline.differences import Difference
from nullbooth_cli.report.watch import WatchedProcess, WatchedStage, WatchedUnits, WatchReport
from tests.support.screen import Screen

WAITING = WatchedUnits(state="missing", units_done=0, units_total=None, units_per_minute=None, seconds_left=None)
COLLECT = WatchedStage(
    state="partial",
    units_done=17,
    units_total=100,
    units_per_minute=42.0,
    seconds_left=118.6,
    stale_because=(),
    heldout=WAITING,
)
PROCESS = WatchedProcess(
    worker="1-of-1.0",
    stage="collect",
    heldout=False,
    host="gpu-node-17.cluster.example.org",
    pid=4711,
    units=9,
    seconds=30.0,
    seconds_per_unit=2.857,
    seconds_since_unit=1.2,
    silent_seconds=None,
)
SILENT = replace(PROCESS, worker="1-of-1.1", silent_seconds=40.0)
REPORT = WatchReport(store="run[0].zarr", time=0.0, stages={"collect": COLLECT}, workers=(PROCESS, SILENT))


def show(*reports: WatchReport, as_json: bool = False) -> None:
    Terminal(as_json=as_json).watch(reports, draw_watch, watch_line, WatchReport.change_key)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits(screen: Callable[..., Screen], width: int) -> None:
    shown = screen(width)
    show(REPORT, replace(REPORT, workers=()))
    lines = [line.rstrip() for line in shown.plain]
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("run[0].zarr at ")
    row = next(line for line in lines if line.startswith("collect "))
    assert row.split() == ["collect", "partial", "17/100", "42.0", "2", "min"]
    assert any(re.match(r"1 .* silent for 40 s$", line) for line in lines)
    assert any("no process is working on units" in line for line in lines)


def test_reasons_are_shown(screen: Callable[..., Screen]) -> None:
    shown = screen(120)
    stale = replace(COLLECT, state="stale", stale_because=(Difference("collect.seed", 0, 1),))
    show(replace(REPORT, stages={"collect": stale}))
    assert "collect is stale: collect.seed: 0 -> 1" in [line.rstrip() for line in shown.plain]


def test_a_pipe_gets_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    more = replace(REPORT, stages={"collect": replace(COLLECT, units_done=18)})
    reports = (REPORT, replace(REPORT, time=2.0), more)
    show(*reports)
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:].split(", ")[0] for line in lines] == ["collect partial 17/100", "collect partial 18/100"]
    show(*reports, as_json=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["stages"]["collect"]["units_done"] for document in found] == [17, 18]
    assert found[0]["workers"][1]["silent_seconds"] == 40.0


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ((PROCESS, SILENT), "collect partial 17/100, 42 units/min, 2 min left, 1 process, process 1 silent for 40 s"),
        ((PROCESS, replace(PROCESS, worker="1-of-1.1")), "collect partial 17/100, 42 units/min, 2 min left, 2 processes"),
        (
            (replace(SILENT, worker="3-of-16.0"),),
            "collect partial 17/100, 42 units/min, 2 min left, no process is working on units, process 3/16.0 silent for 40 s",
        ),
    ],
)
def test_the_line_names_who_is_silent(workers: tuple[WatchedProcess, ...], words: str) -> None:
    assert watch_line(replace(REPORT, workers=workers))[9:] == words
