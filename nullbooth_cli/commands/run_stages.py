"""Runs stages for every stage command: signals, confirmation and drawing around the library's `run_stages`."""

import contextlib
import os
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import typer

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.draw import draw_plans, draw_schedule, draw_stage, summary_line
from nullbooth_cli.commands.options import Common, Control
from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.commands.signals import interruptible
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline import collect, plan, stages
from nullbooth_cli.pipeline.open_run import open_run
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.state import StageState
from nullbooth_cli.pipeline.workers import Shard
from nullbooth_cli.progress import Event, Interrupts, Note
from nullbooth_cli.report.inspection import InspectReport, inspect_store, warning_lines
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.report.plan import plan_report
from nullbooth_cli.report.schedule import schedule_report
from nullbooth_cli.report.status import stage_answer
from nullbooth_cli.store import Store


def run_stages(wanted: tuple[str, ...], common: Common, control: Control) -> None:
    """Run stages in order, and give the answer of the last one."""
    session = start(common)
    if session.is_default and wanted[0] in ("schedule", "collect"):
        session.terminal.note(f"no config file: every key that is not set has its default; the model is {session.config.model}")
    for flag, given in (("--plot", control.plot), ("--sites", control.sites)):
        if given and not control.explore:
            raise ConfigError(f"{flag} needs --explore", "add --explore")
    if control.explore:
        from nullbooth_cli.commands.project_explore import explore

        explore(session, control.device, sites=control.sites, plot=control.plot)
        return
    if control.dry_run:
        _plan(wanted, session, control)
        return
    shard = Shard.parse(control.shard) if control.shard else None
    if shard and control.repair:
        raise ConfigError(
            "--repair reads what every shard wrote, and removes the sums that are damaged",
            "wait until all shards have ended, and run nullbooth collect --repair without --shard",
        )
    if shard and control.force:
        raise ConfigError(
            "--force would throw away the work of the other shards",
            "start again with nullbooth collect --force --limit 1, and then start the shards",
        )
    if wanted[0] in ("covariance", "project"):
        session.open()
    stages.check_possible(wanted, session.config, session.prompts, device=control.device)
    interrupts = Interrupts()
    with (
        interruptible(interrupts, session.terminal.note, "the unit that runs"),
        open_run(
            session.config,
            session.prompts,
            device=control.device,
            force=control.force,
            limit=control.limit,
            repair=control.repair,
            auto_batch=control.auto_batch,
            shard=shard,
            interrupts=interrupts,
        ) as run,
        # Closed here: after an interrupt while a bar is drawn, the stage must end before the store is unlocked.
        contextlib.closing(_events(wanted, run, control)) as events,
    ):
        session.terminal.follow(events)
    if not session.terminal.silent:
        # Damage of a later stage is not the concern of this one.
        states = replace(run, stage=wanted[-1], force=False, repair=False).states().stages
        document, draw = _answer(wanted[-1], session, run.store, states)
        session.terminal.answer(document, draw)
        if isinstance(document, InspectReport):
            session.terminal.warn(warning_lines(document.sites))
        session.terminal.next(*next_command.after_a_stage(states, session.options, session.url))


def _plan(wanted: tuple[str, ...], session: Session, control: Control) -> None:
    """Answer with the plans of the stages. Nothing is written."""
    planned = plan.plan(
        wanted,
        session.config,
        session.prompts,
        session.open_if_there(),
        device=control.device,
        free=session.backing(read_only=True).free_nbytes(),
        on_note=session.terminal.note,
    )
    session.terminal.answer(plan_report(planned), draw_plans)
    session.terminal.next(next_command.run_them(wanted, session.options, control.force))


def _events(wanted: tuple[str, ...], run: Run, control: Control) -> Generator[Event, None, None]:
    def confirm(stage: str, units: int) -> None:
        if not control.yes and run.workers.size == 1 and os.isatty(0) and os.isatty(2):
            typer.confirm(f"replace the {units} finished units of {stage}?", abort=True, err=True)

    yield from stages.run_stages(wanted, run, confirm)
    if control.release and run.workers.rank == 0 and run.states().stages[wanted[-1]].state == "complete":
        yield Note(collect.release_features(run.store))
        run.cache.forget()


def _answer(stage: str, session: Session, store: Store, states: dict[str, StageState]) -> tuple[Document, Callable[[Any], Any]]:
    if stage == "schedule":
        return schedule_report(session.config, store), draw_schedule
    if stage == "project" and states["project"].state == "complete":
        return inspect_store(session.config, store), summary_line
    return stage_answer(stage, states[stage], store), draw_stage
