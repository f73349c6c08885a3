"""What `nullbooth status --watch` sees: the state of the stages and the notes of the processes, looked at again and again.

Nothing here writes, takes a lock or waits for a process. Units are counted from the progress cells, which is what a next run
would go by; rates come from the notes of those that are at work.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.state import DONE, StageState
from nullbooth_cli.report.json_document import SCHEMA_VERSION
from nullbooth_cli.store import Heartbeat, Store

SILENT_SECONDS = 15.0  # five signs of life that did not come
PATIENCE = 3  # looks in a row that fail before it is more than a change under way
Notes = list[tuple[str, Heartbeat]]


def notes_of(store: Store) -> Notes:
    """(part, note) of each process at work; the part is "" or "heldout"."""
    inner = store.heldout()
    return [("", note) for note in store.heartbeats.read()] + [
        (HELDOUT, note) for note in (inner.heartbeats.read() if inner else [])
    ]


class Ages:
    """How long ago each process gave its last sign.

    By this machine's own clock once a sign was seen to change; until then the difference of two clocks has to do.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, float, bool]] = {}

    def age(self, part: str, note: Heartbeat, *, now: float, clock: float) -> float:
        """Seconds; `now` is the time of day, `clock` a monotonic clock."""
        sign, since, changed = self._seen.get((part, note.worker), (note.time, clock, False))
        if note.time != sign:
            sign, since, changed = note.time, clock, True
        self._seen[part, note.worker] = sign, since, changed
        return clock - since if changed else max(0.0, now - note.time)


def watch_document(url: str, states: dict[str, StageState], notes: Notes, ages: Ages) -> dict[str, Any]:
    now, clock = time.time(), time.monotonic()
    workers = [
        _worker_document(part, note, ages.age(part, note, now=now, clock=clock))
        for part, note in notes
        if not _is_over(states, part, note.stage)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "store": url,
        "time": now,
        "stages": {
            stage: {
                **_row(found, workers, stage, ""),
                "stale_because": [vars(because) for because in found.stale_because],
                **({"heldout": _row(found.heldout, workers, stage, HELDOUT)} if found.heldout else {}),
                **({"attention": _row(found.attention, workers, "attention", "")} if found.attention else {}),
            }
            for stage, found in states.items()
        },
        "workers": workers,
    }


def _is_over(states: dict[str, StageState], part: str, stage: str) -> bool:
    """Whether what a note is about is done: its process was killed after its last unit."""
    found: StageState | None = states["collect" if stage == "attention" else stage]
    if part and found:
        found = found.heldout
    elif stage == "attention" and found:
        found = found.attention
    return found is not None and found.units_done == found.units_total


def _worker_document(part: str, note: Heartbeat, age: float) -> dict[str, Any]:
    return {
        "worker": note.worker,
        "stage": note.stage,
        "heldout": part == HELDOUT,
        "host": note.host,
        "pid": note.pid,
        "units": note.units,
        "seconds": note.time - note.began,
        "seconds_per_unit": note.seconds_per_unit,
        "seconds_since_unit": None if note.last is None else note.time - note.last + age,
        "silent_seconds": age if age > SILENT_SECONDS else None,
    }


def _row(found: StageState, workers: list[dict[str, Any]], stage: str, part: str) -> dict[str, Any]:
    """Units of a stage, how many its processes do in a minute, and what is left at that pace."""
    paces = [
        worker["seconds_per_unit"]
        for worker in workers
        if (worker["stage"], worker["heldout"]) == (stage, part == HELDOUT) and worker["silent_seconds"] is None
    ]
    a_second = sum(1 / pace for pace in paces if pace)
    left = None if found.units_total is None else found.units_total - found.units_done
    return {
        "state": found.state,
        "units_done": found.units_done,
        "units_total": found.units_total,
        "units_per_minute": 60 * a_second if a_second else None,
        "seconds_left": left / a_second if a_second and left is not None else None,
    }


def change_key(document: dict[str, Any]) -> Any:
    """What has to differ for a document to be news: states, units, who is there and who is silent."""

    def of_row(row: dict[str, Any]) -> Any:
        inner = [of_row(row[part]) for part in (HELDOUT, "attention") if part in row]
        return row["state"], row["units_done"], row["units_total"], inner

    return (
        [of_row(row) for row in document["stages"].values()],
        [(worker["worker"], worker["heldout"], worker["silent_seconds"] is None) for worker in document["workers"]],
    )


def poll(look: Callable[[], dict[str, Any]], until: str | None, interval: float) -> Iterator[dict[str, Any]]:
    """What `look` finds, every `interval` seconds, until the stage `until` is complete, or without one every stage.

    A look may fall into the middle of a change and find an array without its chunks. It is repeated; what is still wrong after
    `PATIENCE` looks is raised.
    """
    failed = 0
    while True:
        try:
            document = look()
        except (NullboothError, LookupError, OSError, ValueError):
            failed += 1
            if failed == PATIENCE:
                raise
            time.sleep(interval)
            continue
        failed = 0
        yield document
        stages = document["stages"]
        if all(_is_done(stages[stage]) for stage in ([until] if until else stages)):
            return
        time.sleep(interval)


def _is_done(row: dict[str, Any]) -> bool:
    return row["state"] in DONE and row.get("attention", row)["state"] in DONE
