"""A run of a stage: what was asked for, what it begins with, how its units are reported."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.pipeline.heartbeat import beating
from nullbooth_cli.pipeline.state import Difference, own_states, wanted_settings
from nullbooth_cli.pipeline.workers import Workers
from nullbooth_cli.progress import Begin, Event, Interrupts, Progress
from nullbooth_cli.settings.config import STAGES, CollectSection, Config, public_settings
from nullbooth_cli.settings.fingerprints import fingerprint, model_names
from nullbooth_cli.store import Layout, Store


def layout_of(section: CollectSection, batch_size: int | None = None) -> Layout:
    """How a collection is kept that is begun with these settings."""
    return Layout(section.keep, batch_size or section.batch_size, section.feature_dtype, section.compression)


PACE_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """What a command was asked to do. `store` is open for writing."""

    config: Config
    prompts: tuple[Prompt, ...]
    store: Store
    device: str | None = None
    force: bool = False
    limit: int | None = None
    repair: bool = False
    auto_batch: bool = False
    workers: Workers = field(default_factory=Workers)
    interrupts: Interrupts = field(default_factory=Interrupts)


@dataclass
class Prepared:
    """What the process that prepares a stage tells all of them: the units to do, and what the user should know."""

    todo: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)


def model_renamed(config: Config, store: Store | None) -> tuple[Difference, ...]:
    """The names of the model that are not those it was collected from under: only its weights tell whether it is another."""
    record = store.records.get("collect") if store else None
    if record is None:
        return ()
    old, new = record["model"], model_names(config)
    return tuple(Difference(name, old[name], new[name]) for name in new if old[name] != new[name])


def state_of(run: Run, stage: str) -> str:
    return own_states(run.config, run.prompts, run.store)[stage].state


def start_stage(run: Run, stage: str, extra: dict[str, Any] | None = None, **notes: Any) -> None:
    """Write the record that marks a stage as begun under the current config; `notes` are no part of its fingerprint."""
    records = run.store.records
    record = {
        "settings": wanted_settings(run.config, run.prompts, stage),
        "upstream": {name: records[name]["fingerprint"] for name in STAGES[: STAGES.index(stage)]},
        **(extra or {}),
    }
    run.store.write_config(public_settings(run.config))
    run.store.write_record(stage, {**record, "fingerprint": fingerprint(record), **notes})


def units_to_do(run: Run, stage: str, is_done: Callable[[int], bool], notes: list[str] | None = None) -> dict[str, Any]:
    if run.workers.shard is None:
        for note in run.store.heartbeats.read():  # whoever left them is gone: nobody else works on the store now
            run.store.heartbeats.remove(note.worker)
    cells = [is_done(int(cell)) for cell in run.store.progress.cells(stage)]
    todo = run.workers.mine([unit for unit, done in enumerate(cells) if not done])[: run.limit]
    return vars(Prepared(todo, sum(cells), len(cells), notes or []))


def report_units(run: Run, stage: str, prepared: Prepared, units: Iterator[str]) -> Iterator[Event]:
    """Report the units that a stage finishes (their descriptions), with those of the other processes, until all are done.

    Who watches the store is told how far this process is.

    The pace that is left behind is that of the first process; of shards, that of the last one to say it.
    """
    started, mine = time.monotonic(), 0
    noted = started
    done = prepared.done
    if prepared.todo:
        yield Begin(stage, done, prepared.total)
    with beating(run.store, run.workers, stage) as at_work:
        for what in units:
            mine += 1
            at_work.finished()
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
