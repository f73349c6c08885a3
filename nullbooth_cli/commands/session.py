"""From options to a config, its prompts and a store; and the one way in which stage commands run."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from nullbooth_cli import collecting, plans, report, stages
from nullbooth_cli.commands.configured import configure
from nullbooth_cli.commands.options import Common, Control
from nullbooth_cli.config import Config, public_settings
from nullbooth_cli.console import Terminal, aligned, duration, operations, size, table
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.events import Event, Interrupts, Note
from nullbooth_cli.images import knowledge_prompts
from nullbooth_cli.prompts import Prompt, load_prompts
from nullbooth_cli.runs import Run
from nullbooth_cli.states import StageState, require, stage_states
from nullbooth_cli.store import Backing, Store, is_url, locked, open_backing, shard_locked
from nullbooth_cli.workers import Shard, Workers, start_workers

PREPARING_SECONDS = 600.0  # that shards wait for the one that makes the store ready


@dataclass(frozen=True)
class Session:
    """A command's config, prompts and store; `url` is the store's folder or URL."""

    config: Config
    url: str
    prompts: tuple[Prompt, ...]
    terminal: Terminal
    arguments: str
    common: Common

    def open(self, *, write: bool = False) -> Store:
        """The store. Raises StageError if nothing was collected into it yet."""
        if not self._exists():
            raise StageError(f"nothing was collected yet: no store at {self.url}", f"nullbooth collect{self.arguments}")
        return Store.open(self.url, write=write, options=self.config.storage_options)

    def open_finished(self) -> Store:
        """The store. Raises StageError unless its projectors are complete."""
        store = self.open()
        require(stage_states(self.config, self.prompts, store), "project", self.url)
        return store

    def open_if_there(self) -> Store | None:
        return self.open() if self._exists() else None

    def open_or_create(self) -> Store:
        return Store.open_or_create(self.url, public_settings(self.config), self.config.storage_options)

    def backing(self, *, read_only: bool = False) -> Backing:
        return open_backing(self.url, self.config.storage_options, read_only=read_only)

    def _exists(self) -> bool:
        return self.backing(read_only=True).exists()

    def next(self, states: dict[str, StageState]) -> None:
        """Point to the first stage that is not complete."""
        for stage, found in states.items():
            if not found.is_done:
                force = " --force" if found.state == "stale" else ""
                return self.terminal.next(f"nullbooth {stage}{self.arguments}{force}")
        self.terminal.next(f"nullbooth inspect{self.arguments}")


def start(common: Common) -> Session:
    """Find and read the config and the prompts, and say where the store is."""
    # Of the processes of a launch, one speaks.
    terminal = Terminal(as_json=common.as_json, quiet=common.quiet, silent=os.environ.get("RANK", "0") != "0")
    given = configure(common)
    config = given.config
    if config.heldout_prompts is not None:
        # By their texts from here on: what is written into the store then needs no file.
        heldout = [prompt.text for prompt in load_prompts(config.heldout_prompts, "heldout_prompts")]
        config = config.model_copy(update={"heldout_prompts": heldout})
    url = config.store if is_url(config.store) else str(Path(config.store))
    open_backing(url, config.storage_options, read_only=True)  # refuses a URL with credentials before anything shows it
    if common.verbose:
        terminal.note(f"config {given.source}; store {url}")
    prompts = given.prompts or knowledge_prompts(config)
    return Session(config, url, prompts, terminal, given.arguments, common)


def run_stages(wanted: tuple[str, ...], common: Common, control: Control) -> None:
    """Run stages in order and answer with what the last one made."""
    session = start(common)
    if control.plot and not control.explore:
        raise ConfigError("--plot draws what --explore shows", "add --explore")
    if control.explore:
        from nullbooth_cli.commands.exploring import explore

        explore(session, control.device, control.plot)
        return
    if control.dry_run:
        store = session.open_if_there()
        free = session.backing(read_only=True).free_nbytes()
        planned = plans.plan(wanted, session.config, session.prompts, store, control.device, free, session.terminal.note)
        session.terminal.answer(report.plan_document(planned), _draw_plans)
        return
    shard = Shard.parse(control.shard) if control.shard else None
    if shard and control.force:
        raise ConfigError(
            "--force would throw away what the other shards did",
            "begin again with nullbooth collect --force --limit 1, and then start the shards",
        )
    if wanted[0] in ("covariance", "project"):
        session.open()
    interrupts = Interrupts()
    with (
        _signals(session.terminal, interrupts),
        start_workers(shard, partial(_preparing, session) if shard else None) as workers,
        _held(session, workers),
    ):
        workers.agree(lambda: session.open_or_create().url)
        store = session.open(write=True)
        # Closed here: an interrupt while a bar is drawn must end what the stage holds before the store is let go.
        with contextlib.closing(_events(wanted, session, store, control, workers, interrupts)) as events:
            session.terminal.follow(events)
    states = stage_states(session.config, session.prompts, store)
    if not session.terminal.silent:
        document, draw = _answer(wanted[-1], session, store, states)
        session.terminal.answer(document, draw)
        session.terminal.warn(warnings_of(document))
        session.next(states)


def _preparing(session: Session) -> contextlib.AbstractContextManager[None]:
    return locked(session.backing(), PREPARING_SECONDS, among_shards=True)


@contextlib.contextmanager
def _held(session: Session, workers: Workers) -> Iterator[None]:
    """Hold the store, or one shard of it: the first process of a launch for all, then each other one a lock of its own.

    The first may be killed while others still write; nothing may begin beside them.
    """
    backing = session.backing()
    if workers.rank != 0:
        workers.agree(lambda: None)
        with backing.lock(workers.lock):
            yield
    elif workers.shard:
        with shard_locked(backing, workers.shard.number, workers.shard.count):
            workers.agree(lambda: None)
            yield
    else:
        with locked(backing):
            workers.agree(lambda: None)
            yield


@contextlib.contextmanager
def _signals(terminal: Terminal, interrupts: Interrupts) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a stage at once, or after its unit if that saves unwritten work; the second always at once."""

    def receive(*_: Any) -> None:
        if not interrupts.holding or interrupts.requested:
            raise KeyboardInterrupt
        interrupts.requested = True
        terminal.note("interrupted: finishing and writing the unit that runs; Ctrl-C again stops at once and loses it")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _events(
    wanted: tuple[str, ...], session: Session, store: Store, control: Control, workers: Workers, interrupts: Interrupts
) -> Generator[Event, None, None]:
    several = len(wanted) > 1
    for stage in wanted:

        def look(stage: str = stage) -> list[Any]:
            state = stage_states(session.config, session.prompts, store)[stage]
            return [state.state, state.units_done]

        store.reload()
        state, units_done = workers.agree(look)
        # `run --force` replaces what is stale; a single stage with --force is done again whatever its state.
        force = control.force and (not several or state == "stale")
        if force and not control.yes and units_done and workers.size == 1 and os.isatty(0) and os.isatty(2):
            typer.confirm(f"replace the {units_done} finished units of {stage}?", abort=True, err=True)
        yield from stages.execute(
            stage,
            Run(
                session.config,
                session.prompts,
                store,
                control.device,
                force,
                control.limit,
                control.repair,
                control.auto_batch,
                workers,
                interrupts,
            ),
        )
    if control.release and workers.rank == 0 and look()[0] == "complete":
        yield Note(collecting.release(store))


def _answer(
    stage: str, session: Session, store: Store, states: dict[str, StageState]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    if stage == "schedule":
        return report.schedule_document(session.config, store), draw_schedule
    if stage == "project" and states["project"].state == "complete":
        return report.inspect_document(session.config, store), draw_summary
    return report.stage_document(stage, states[stage], store), draw_stage


def draw_schedule(document: dict[str, Any]) -> Any:
    timesteps = aligned([step["timestep"] for step in document["steps"]])
    rows = [
        [str(step["index"]), step["key"], timestep, "" if step["sigma"] is None else f"{step['sigma']:.4f}"]
        for step, timestep in zip(document["steps"], timesteps, strict=True)
    ]
    return table(["step", "key", "timestep", "sigma"], rows, right=frozenset({0, 2, 3}))


def warnings_of(document: dict[str, Any]) -> list[str]:
    """What makes some of the projectors doubtful, each with the sites that it is said of."""
    sites: dict[str, list[str]] = {}
    for site in document.get("sites", []):
        for warning in site["warnings"]:
            at = "" if site["timestep"] is None else f" {site['key']}"
            sites.setdefault(warning, []).append(f"{site['layer']}.{site['feature']}{at}")
    return [
        f"{warning}: {names[0]}" + (f" and {len(names) - 1} more sites (--json names them)" if len(names) > 1 else "")
        for warning, names in sites.items()
    ]


def draw_summary(document: dict[str, Any]) -> str:
    totals, rule = document["totals"], document["rule"]
    held = totals["largest_heldout_leakage"]
    heldout = "" if held is None else f", on held-out prompts {held:.2g}"
    return (
        f"{document['store']}: {totals['sites']} sites for {totals['weights']} weights, {rule['name']} {rule['value']:g}: "
        f"{totals['null_dim']} of {totals['dim']} dimensions are null, leakage at most {totals['largest_leakage']:.2g}" + heldout
    )


def draw_stage(document: dict[str, Any]) -> str:
    return (
        f"{document['store']}: {document['stage']} {document['state']}, "
        f"{document['units_done']} of {document['units_total']} units, {size(document['bytes'])}"
    )


def _draw_plans(document: dict[str, Any]) -> Any:
    rows = [
        [
            plan["stage"],
            str(plan["units_done"]),
            str(plan["units_total"] - plan["units_done"]),
            "?" if plan["seconds"] is None else duration(plan["seconds"]),
            "" if plan["operations"] is None else operations(plan["operations"]),
            size(plan["bytes_needed"]),
            "?" if plan["bytes_free"] is None else size(plan["bytes_free"]),
            plan["device"],
            size(plan["device_bytes_needed"]),
            size(plan["device_bytes_free"]),
        ]
        for plan in document["stages"].values()
    ]
    columns = ["stage", "done", "to do", "time", "operations", "needs", "free", "device", "sums there", "free there"]
    return table(
        columns, rows, right=frozenset({1, 2, 3, 4, 5, 6, 8, 9}), drop=("operations", "sums there", "free there", "device")
    )
