"""A run of a stage: the request, its preparation, and the reports of its units.

Several processes may run one stage. `decide` and `prepare` are the only places where one of them acts for all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.pipeline.differences import wanted_settings
from nullbooth_cli.pipeline.heartbeat import beating
from nullbooth_cli.pipeline.state import States, read_states
from nullbooth_cli.pipeline.workers import Workers
from nullbooth_cli.progress import Begin, Event, Interrupts, Progress
from nullbooth_cli.settings.config import STAGES, CollectSection, Config, public_settings
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.store import Layout, Store

PACE_SECONDS = 10.0
Decision = TypeVar("Decision")


def layout_of(section: CollectSection, batch_size: int | None = None) -> Layout:
    """The layout of a collection that is started with these settings; `batch_size` replaces that of the settings."""
    return Layout(
        keep=section.keep,
        batch_size=batch_size or section.batch_size,
        dtype=section.feature_dtype,
        compression=section.compression,
    )


@dataclass
class StateCache:
    """The states of a run's stages, as they were read; None once something may have changed them."""

    states: States | None = None

    def forget(self) -> None:
        """Read them again at the next use: this process wrote to the store, or another one may have."""
        self.states = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """The request. `store` is open for writing, and locked; `limit` is the number of units to do, None for all.

    `stage` is the one at work: damage of a later one, or of one that is replaced or repaired, does not stop it. `edited` is the
    place of an edited model, which collect runs instead of the config's.
    """

    config: Config
    prompts: tuple[Prompt, ...]
    store: Store
    stage: str | None = None
    device: str | None = None
    force: bool = False
    limit: int | None = None
    repair: bool = False
    auto_batch: bool = False
    edited: str | None = None
    workers: Workers = field(default_factory=Workers)
    interrupts: Interrupts = field(default_factory=Interrupts)
    cache: StateCache = field(default_factory=StateCache, repr=False)

    def states(self) -> States:
        """The states of all stages. Cost: see `pipeline/state.py`, unless they are cached."""
        first = len(STAGES) if self.stage is None else STAGES.index(self.stage) + (not (self.force or self.repair))
        cached, strict = self.cache.states, STAGES[:first]
        if cached is None or any(stage in cached.damaged for stage in strict):
            self.cache.states = cached = read_states(self.config, self.prompts, self.store, tolerate=STAGES[first:])
        return cached


@dataclass(kw_only=True)
class Prepared:
    """The result of preparing a stage, the same in all processes: the units to do, and notes for the user."""

    todo: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)


def decide(run: Run, decision: Callable[[], Decision]) -> Decision:
    """The result of `decision`, a JSON value, which one process makes for all. The store is read afresh first."""

    def decided() -> Decision:
        if run.workers.shard or run.workers.size > 1:
            run.store.reload()
            run.cache.forget()
        return decision()

    agreed: Decision = run.workers.agree(decided)
    return agreed


def prepare(run: Run, begin: Callable[[], Prepared]) -> Prepared:
    """Let one process prepare a stage (`begin` may write to the store), then read the store again in every process."""
    prepared = Prepared(**decide(run, lambda: vars(begin())))
    run.store.reload()
    run.cache.forget()
    return prepared


def my_units(run: Run, prepared: Prepared) -> Iterator[int]:
    """The units of a stage that this process does."""
    return (prepared.todo[i] for i in run.workers.share(len(prepared.todo)))


def start_stage(run: Run, stage: str, extra: dict[str, Any] | None = None, **notes: Any) -> None:
    """Write the record that marks a stage as started under the current config.

    `extra` is part of the stage's fingerprint, `notes` are not.
    """
    records = run.store.records
    record = {
        "settings": wanted_settings(run.config, run.prompts, stage),
        "upstream": {name: records[name]["fingerprint"] for name in STAGES[: STAGES.index(stage)]},
        **(extra or {}),
    }
    run.store.write_config(public_settings(run.config))
    run.store.write_record(stage, {**record, "fingerprint": fingerprint(record), **notes})


def units_to_do(run: Run, stage: str, is_done: Callable[[int], bool], notes: list[str] | None = None) -> Prepared:
    """The units that are left of a started stage, at most `run.limit`; `is_done(cell)` is True for a finished unit."""
    if run.workers.shard is None:
        run.store.heartbeats.clear()  # left by processes that are gone: this run has the store alone
    cells = [is_done(int(cell)) for cell in run.store.progress.cells(stage)]
    todo = run.workers.mine([unit for unit, done in enumerate(cells) if not done])[: run.limit]
    return Prepared(todo=todo, done=sum(cells), total=len(cells), notes=notes or [])


def report_units(run: Run, stage: str, prepared: Prepared, units: Iterator[str]) -> Iterator[Event]:
    """Report the units that a stage finishes (their descriptions), with those of the other processes, until all are done.

    Heartbeats show other processes how far this one is. The pace in the store is that of the first process; of shards, that of
    the last one that wrote it.
    """
    started, mine = time.monotonic(), 0
    noted = started
    done = prepared.done
    if prepared.todo:
        yield Begin(stage, done, prepared.total)
    with beating(run.store, run.workers, stage) as finished_unit:
        for what in units:
            mine += 1
            finished_unit()
            done = prepared.done + run.workers.count(1)
            now = time.monotonic()
            if run.workers.rank == 0 and now - noted >= PACE_SECONDS:
                run.store.progress.note_pace(stage, (now - started) / mine)
                noted = now
            yield Progress(stage, done, prepared.total, what)
    if run.workers.rank == 0 and mine:
        run.store.progress.note_pace(stage, (time.monotonic() - started) / mine)
    for count in run.workers.finish():
        if prepared.done + count > done:
            done = prepared.done + count
            yield Progress(stage, done, prepared.total, "units of other processes")
    run.cache.forget()
