"""`nullbooth status --watch`: follow a run from another process."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.options import Common
from nullbooth_cli.commands.session import start
from nullbooth_cli.commands.tables import table
from nullbooth_cli.formatting import duration, rate
from nullbooth_cli.pipeline.state import DONE, stage_states
from nullbooth_cli.report.watch import Ages, WatchedProcess, WatchedUnits, WatchReport, poll, read_notes, watch_report

if TYPE_CHECKING:
    from rich.console import RenderableType

NOBODY = "no process is working on units"


def watch_status(common: Common, until: str | None, interval: float) -> None:
    """Show every change until the stage `until` is complete, or all are. Ctrl-C ends it too, and is not a failure."""
    session, ages = start(common), Ages()
    session.open()  # a store that is not there is an error, not something to wait for
    again = replace(common, verbose=False)

    def read_report() -> WatchReport:
        # Everything is read again: the run may have been started with another config or more prompts.
        session = start(again)
        store = session.open()
        return watch_report(session.url, stage_states(session.config, session.prompts, store), read_notes(store), ages)

    try:
        session.terminal.watch(poll(read_report, until, interval), draw_watch, watch_line, WatchReport.change_key)
    except KeyboardInterrupt:
        session.terminal.note("stopped watching; the run continues")
        return
    session.terminal.note(f"{until or 'every stage'} is complete")
    session = start(again)
    states = stage_states(session.config, session.prompts, session.open())
    session.terminal.next(*next_command.after_a_stage(states, session.options, session.url))


def draw_watch(report: WatchReport) -> "list[RenderableType]":
    """The view on a terminal: a table of the stages, the reasons that stages are stale, and a table of the processes."""
    stages = [[name, row.state, _units(row), _per_minute(row), _left(row)] for name, row in _rows(report)]
    because = [f"{name} is stale: {difference}" for name, stage in report.stages.items() for difference in stage.stale_because]
    columns = ["stage", "state", "units", "units/min", "time left"]
    drawn: list[RenderableType] = [
        f"{report.store} at {_clock(report)}",
        "",
        table(columns, stages, right=frozenset({2, 3, 4})),
        *because,
        "",
    ]
    processes = [
        [
            _name(process),
            process.host,
            str(process.pid),
            process.stage + (" held-out" if process.heldout else ""),
            str(process.units),
            "" if process.seconds_per_unit is None else f"{process.seconds_per_unit:.2f}",
            _last_unit(process),
        ]
        for process in report.workers
    ]
    columns = ["process", "host", "pid", "stage", "units", "s/unit", "last unit"]
    drawn.append(table(columns, processes, right=frozenset({2, 4, 5}), drop=("pid", "host")) if processes else NOBODY)
    return [*drawn, "", "Ctrl-C ends this view, not the run"]


def watch_line(report: WatchReport) -> str:
    """The first stage that is not done, in a line for a log."""
    rows = _rows(report)
    name, row = next(((name, row) for name, row in rows if row.state not in DONE), rows[-1])
    words = [f"{name} {row.state} {_units(row)}"]
    if row.units_per_minute is not None:
        words += [rate(60 / row.units_per_minute), f"{_left(row)} left"]
    silent = [process for process in report.workers if process.silent_seconds is not None]
    count = len(report.workers) - len(silent)
    words.append(NOBODY if not count else "1 process" if count == 1 else f"{count} processes")
    words += [f"process {_name(process)} {_last_unit(process)}" for process in silent]
    return f"{_clock(report)} {', '.join(words)}"


def _rows(report: WatchReport) -> list[tuple[str, WatchedUnits]]:
    rows: list[tuple[str, WatchedUnits]] = []
    for name, stage in report.stages.items():
        rows.append((name, stage))
        rows += [(f"{name} {part}", row) for part, row in (("held-out", stage.heldout), ("maps", stage.attention)) if row]
    return rows


def _clock(report: WatchReport) -> str:
    return time.strftime("%H:%M:%S", time.localtime(report.time))


def _units(row: WatchedUnits) -> str:
    return f"{row.units_done}/{'?' if row.units_total is None else row.units_total}"


def _per_minute(row: WatchedUnits) -> str:
    return "" if row.units_per_minute is None else f"{row.units_per_minute:,.1f}"


def _left(row: WatchedUnits) -> str:
    return "" if row.seconds_left is None else duration(row.seconds_left)


def _name(process: WatchedProcess) -> str:
    """`3/16.0` for `3-of-16.0`, the first process of shard 3; without shards, the number of the process."""
    shard, _, rank = process.worker.rpartition(".")
    return rank if shard == "1-of-1" else f"{shard.replace('-of-', '/')}.{rank}"


def _last_unit(process: WatchedProcess) -> str:
    if process.silent_seconds is not None:
        return f"silent for {duration(process.silent_seconds)}"
    if process.seconds_since_unit is None:
        return f"none yet, started {duration(process.seconds)} ago"
    return f"{duration(process.seconds_since_unit)} ago"
