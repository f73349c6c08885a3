"""The one way in which stage commands run."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import typer

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.draw import draw_plans, draw_schedule, draw_stage, summary_line, warning_lines
from nullbooth_cli.commands.options import Common, Control
from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline import collect, plan, stages
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.state import StageState, stage_states
from nullbooth_cli.pipeline.workers import Shard, Workers, start_workers
from nullbooth_cli.progress import Event, Interrupts, Note
from nullbooth_cli.report.inspection import InspectReport, inspect_store
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.report.plan import plan_report
from nullbooth_cli.report.schedule import schedule_report
from nullbooth_cli.report.status import stage_answer
from nullbooth_cli.store import Store, is_held, locked, shard_locked

PREPARING_SECONDS = 600.0  # that shards wait for the one that makes the store ready


def run_stages(wanted: tuple[str, ...], common: Common, control: Control) -> None:
    """Run stages in order and answer with what the last one made."""
    session = start(common)
    if control.plot and not control.explore:
        raise ConfigError("--plot draws what --explore shows", "add --explore")
    if control.explore:
        from nullbooth_cli.commands.project_explore import explore

        explore(session, control.device, control.plot)
        return
    if control.dry_run:
        store = session.open_if_there()
        free = session.backing(read_only=True).free_nbytes()
        planned = plan.plan(wanted, session.config, session.prompts, store, control.device, free, session.terminal.note)
        session.terminal.answer(plan_report(planned), draw_plans)
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
        start_workers(shard, partial(_preparing, session) if shard else None, partial(is_held, session.backing())) as workers,
        _locked_store(session, workers),
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
        if isinstance(document, InspectReport):
            session.terminal.warn(warning_lines(document))
        session.next(states)


def _preparing(session: Session) -> contextlib.AbstractContextManager[None]:
    return locked(session.backing(), PREPARING_SECONDS, among_shards=True)


@contextlib.contextmanager
def _locked_store(session: Session, workers: Workers) -> Iterator[None]:
    """Hold the store, or one shard of it: the first process of a launch for all, then each other one a lock of its own.

    The first may be killed while others still write; nothing may begin beside them.
    """
    backing = session.backing()
    if workers.rank != 0:
        workers.agree(lambda: None)
        lock = backing.lock(workers.lock)
    elif workers.shard:
        lock = shard_locked(backing, workers.shard.number, workers.shard.count)
    else:
        lock = locked(backing)
    with lock:
        workers.has_lock()
        if workers.rank == 0:
            workers.agree(lambda: None)
        yield


@contextlib.contextmanager
def _signals(terminal: Terminal, interrupts: Interrupts) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a stage at once, or after its unit if that saves unwritten work; the second always at once.

    A signal that this process was started to ignore stays ignored: Ctrl-C is not meant for a background job of a script.
    """

    def receive(*_: Any) -> None:
        if not interrupts.unwritten or interrupts.requested:
            raise KeyboardInterrupt
        interrupts.requested = True
        terminal.note("interrupted: finishing and writing the unit that runs; Ctrl-C again stops at once and loses it")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heard}
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
        yield Note(collect.release_features(store))


def _answer(stage: str, session: Session, store: Store, states: dict[str, StageState]) -> tuple[Document, Callable[[Any], Any]]:
    if stage == "schedule":
        return schedule_report(session.config, store), draw_schedule
    if stage == "project" and states["project"].state == "complete":
        return inspect_store(session.config, store), summary_line
    return stage_answer(stage, states[stage], store), draw_stage
