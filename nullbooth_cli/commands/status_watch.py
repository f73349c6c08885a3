"""`nullbooth status --watch`: follow a run from beside it."""

import time
from dataclasses import replace
from typing import Any

from nullbooth_cli.commands.options import Common
from nullbooth_cli.commands.session import start
from nullbooth_cli.commands.tables import table
from nullbooth_cli.formatting import duration, rate
from nullbooth_cli.pipeline.state import DONE, stage_states
from nullbooth_cli.report.watch import Ages, change_key, notes_of, poll, watch_document


def watch_status(common: Common, until: str | None, interval: float) -> None:
    """Show what is new until the stage `until` is complete, or all are; Ctrl-C ends it too, and is no failure."""
    session, ages = start(common), Ages()
    session.open()  # refuses to wait for a store that is not there
    again = replace(common, verbose=False)

    def look() -> dict[str, Any]:
        # Afresh: the run beside may have been started with another config or more prompts.
        session = start(again)
        store = session.open()
        return watch_document(session.url, stage_states(session.config, session.prompts, store), notes_of(store), ages)

    try:
        session.terminal.watch(poll(look, until, interval), _draw, _line, change_key)
    except KeyboardInterrupt:
        session.terminal.note("stopped watching; what runs goes on")
        return
    session.terminal.note(f"{until or 'every stage'} is complete")


def _rows(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for stage, found in document["stages"].items():
        rows.append((stage, found))
        rows += [(f"{stage} {name}", found[part]) for part, name in PARTS if part in found]
    return rows


PARTS = (("heldout", "held-out"), ("attention", "maps"))


def _units(row: dict[str, Any]) -> str:
    return f"{row['units_done']}/{'?' if row['units_total'] is None else row['units_total']}"


def _per_minute(row: dict[str, Any]) -> str:
    return "" if row["units_per_minute"] is None else f"{row['units_per_minute']:,.1f}"


def _left(row: dict[str, Any]) -> str:
    return "" if row["seconds_left"] is None else duration(row["seconds_left"])


def _draw(document: dict[str, Any]) -> list[Any]:
    stages = [[name, row["state"], _units(row), _per_minute(row), _left(row)] for name, row in _rows(document)]
    because = [
        f"{stage} is stale: {because['field']}: {because['old']} -> {because['new']}"
        for stage, found in document["stages"].items()
        for because in found["stale_because"]
    ]
    columns = ["stage", "state", "units", "units/min", "time left"]
    drawn: list[Any] = [
        f"{document['store']} at {time.strftime('%H:%M:%S', time.localtime(document['time']))}",
        "",
        table(columns, stages, right=frozenset({2, 3, 4})),
        *because,
        "",
    ]
    workers = [
        [
            _name(worker),
            worker["host"],
            str(worker["pid"]),
            worker["stage"] + (" held-out" if worker["heldout"] else ""),
            str(worker["units"]),
            "" if worker["seconds_per_unit"] is None else f"{worker['seconds_per_unit']:.2f}",
            _sign(worker),
        ]
        for worker in document["workers"]
    ]
    columns = ["process", "host", "pid", "stage", "units", "s/unit", "last unit"]
    drawn += [table(columns, workers, right=frozenset({2, 4, 5}), drop=("pid", "host"))] if workers else [NOBODY]
    return [*drawn, "", "Ctrl-C ends this view, not the run"]


NOBODY = "no process is working on units"


def _name(worker: dict[str, Any]) -> str:
    """Of `3-of-16.0`, the first process of shard 3: `3/16.0`; without shards the number of the process."""
    shard, _, rank = worker["worker"].rpartition(".")
    return rank if shard == "1-of-1" else f"{shard.replace('-of-', '/')}.{rank}"


def _sign(worker: dict[str, Any]) -> str:
    if worker["silent_seconds"] is not None:
        return f"silent for {duration(worker['silent_seconds'])}"
    if worker["seconds_since_unit"] is None:
        return f"none yet, began {duration(worker['seconds'])} ago"
    return f"{duration(worker['seconds_since_unit'])} ago"


def _line(document: dict[str, Any]) -> str:
    """The first stage that is not done, in a line for a log."""
    name, row = next(((name, row) for name, row in _rows(document) if row["state"] not in DONE), _rows(document)[-1])
    pace = row["units_per_minute"]
    said = [f"{name} {row['state']} {_units(row)}"]
    if pace is not None:
        said += [rate(60 / pace), f"{_left(row)} left"]
    silent = [worker for worker in document["workers"] if worker["silent_seconds"] is not None]
    count = len(document["workers"]) - len(silent)
    said.append(NOBODY if not count else "1 process" if count == 1 else f"{count} processes")
    said += [f"process {_name(worker)} {_sign(worker)}" for worker in silent]
    return f"{time.strftime('%H:%M:%S', time.localtime(document['time']))} {', '.join(said)}"
