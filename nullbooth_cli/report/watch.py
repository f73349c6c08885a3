"""The document of `status --watch`: the state of the stages, and the processes that work on them.

Nothing here writes, takes a lock or waits for a process. Units are counted from the progress cells, from which a run would
resume; rates come from the notes of the processes at work.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.differences import Difference
from nullbooth_cli.pipeline.state import DONE, StageState
from nullbooth_cli.report.json_document import OPTIONAL, Document
from nullbooth_cli.store import Heartbeat, Store

SCHEMA_VERSION = 1
SILENT_SECONDS = 15.0  # five missing heartbeats
MAX_FAILURES = 3  # reads in a row that may fail: a read may meet a change half way

WorkerNote = tuple[str, Heartbeat]  # "" for the store itself or "heldout", and a process's note there


@dataclass(frozen=True, kw_only=True)
class WatchedUnits:
    """The progress of a stage, or of its held-out prompts or attention maps, and the time left at the rate of its processes."""

    state: str
    units_done: int
    units_total: int | None
    units_per_minute: float | None
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class WatchedStage(WatchedUnits):
    """The progress of a stage, with its held-out prompts and its attention maps if it has them."""

    stale_because: tuple[Difference, ...]
    heldout: WatchedUnits | None = field(default=None, metadata=OPTIONAL)
    attention: WatchedUnits | None = field(default=None, metadata=OPTIONAL)

    @property
    def is_done(self) -> bool:
        """Whether the stage is complete, and its attention maps too."""
        return self.state in DONE and (self.attention is None or self.attention.state in DONE)


@dataclass(frozen=True, kw_only=True)
class WatchedProcess:
    """A process at work on a stage. `silent_seconds` is None unless its heartbeats have stopped."""

    worker: str
    stage: str
    heldout: bool
    host: str
    pid: int
    units: int
    seconds: float
    seconds_per_unit: float | None
    seconds_since_unit: float | None
    silent_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class WatchReport(Document):
    """The state of a store at `time`, in seconds since 1970."""

    schema_version: int = SCHEMA_VERSION
    store: str
    time: float
    stages: Mapping[str, WatchedStage]
    workers: tuple[WatchedProcess, ...]

    def change_key(self) -> object:
        """A value that changes with a state, a count, the processes, or whether one is silent; equal if nothing happened."""
        rows = [row for stage in self.stages.values() for row in (stage, stage.heldout, stage.attention)]
        return (
            [row and (row.state, row.units_done, row.units_total) for row in rows],
            [(process.worker, process.heldout, process.silent_seconds is None) for process in self.workers],
        )


class Ages:
    """The seconds since the last heartbeat of each process.

    The clocks of two machines may differ, so this machine's own is used once a heartbeat has changed.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, float, bool]] = {}

    def age(self, part: str, note: Heartbeat, *, now: float, clock: float) -> float:
        """Seconds since the last heartbeat; `now` is the time of day, `clock` a monotonic clock."""
        beat, since, changed = self._seen.get((part, note.worker), (note.time, clock, False))
        if note.time != beat:
            beat, since, changed = note.time, clock, True
        self._seen[part, note.worker] = beat, since, changed
        return clock - since if changed else max(0.0, now - note.time)


def read_notes(store: Store) -> list[WorkerNote]:
    """The notes of the processes at work, on the store itself and on its held-out prompts."""
    inner = store.heldout()
    heldout = inner.heartbeats.read() if inner else []
    return [("", note) for note in store.heartbeats.read()] + [(HELDOUT, note) for note in heldout]


def watch_report(url: str, states: Mapping[str, StageState], notes: list[WorkerNote], ages: Ages) -> WatchReport:
    """The report on a store at `url`. Notes about work that is done are left out: killed processes left them."""
    now, clock = time.time(), time.monotonic()
    processes = [
        _process(part, note, ages.age(part, note, now=now, clock=clock))
        for part, note in notes
        if not _is_over(states, part, note.stage)
    ]
    stages = {stage: _stage(stage, state, processes) for stage, state in states.items()}
    return WatchReport(store=url, time=now, stages=stages, workers=tuple(processes))


def _is_over(states: Mapping[str, StageState], part: str, stage: str) -> bool:
    """Whether the work that a note is about is done, or is not work of this version."""
    known = states.get("collect" if stage == "attention" else stage)
    if known is None:
        return True
    found: StageState | None = known.heldout if part else known.attention if stage == "attention" else known
    return found is not None and found.units_done == found.units_total


def _process(part: str, note: Heartbeat, age: float) -> WatchedProcess:
    return WatchedProcess(
        worker=note.worker,
        stage=note.stage,
        heldout=part == HELDOUT,
        host=note.host,
        pid=note.pid,
        units=note.units,
        seconds=note.time - note.began,
        seconds_per_unit=None if note.last is None else (note.last - note.began) / note.units,
        seconds_since_unit=None if note.last is None else note.time - note.last + age,
        silent_seconds=age if age > SILENT_SECONDS else None,
    )


def _stage(stage: str, state: StageState, processes: list[WatchedProcess]) -> WatchedStage:
    own, heldout, attention = (
        [p for p in processes if (p.stage, p.heldout) == wanted]
        for wanted in ((stage, False), (stage, True), ("attention", False))
    )
    return WatchedStage(
        **vars(_units(state, own)),
        stale_because=state.stale_because,
        heldout=_units(state.heldout, heldout) if state.heldout else None,
        attention=_units(state.attention, attention) if state.attention else None,
    )


def _units(state: StageState, processes: list[WatchedProcess]) -> WatchedUnits:
    rates = [1 / p.seconds_per_unit for p in processes if p.seconds_per_unit and p.silent_seconds is None]
    left = None if state.units_total is None else state.units_total - state.units_done
    return WatchedUnits(
        state=state.state,
        units_done=state.units_done,
        units_total=state.units_total,
        units_per_minute=60 * sum(rates) if rates else None,
        seconds_left=left / sum(rates) if rates and left is not None else None,
    )


def poll(read: Callable[[], WatchReport], until: str | None, interval: float) -> Iterator[WatchReport]:
    """Yield `read()` every `interval` seconds, until the stage `until` is complete, or every stage if it is None.

    A read may meet a change half way and find an array without its chunks, so it is repeated. An error is raised once
    `MAX_FAILURES` reads in a row have failed.
    """
    failures = 0
    while True:
        try:
            report = read()
        except (NullboothError, LookupError, OSError, ValueError):
            failures += 1
            if failures == MAX_FAILURES:
                raise
        else:
            failures = 0
            yield report
            if all(report.stages[stage].is_done for stage in ([until] if until else report.stages)):
                return
        time.sleep(interval)
