"""From options to a config, its prompts and a store; and the one way in which stage commands run."""

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from nullbooth_cli import report, stages
from nullbooth_cli.commands.options import Common, Control
from nullbooth_cli.config import Config, build_config, find_config, load_config
from nullbooth_cli.console import Terminal, size, table
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.events import Event
from nullbooth_cli.prompts import Prompt, load_prompts
from nullbooth_cli.states import StageState, stage_states
from nullbooth_cli.store import Store


@dataclass(frozen=True)
class Session:
    config: Config
    path: Path
    prompts: tuple[Prompt, ...]
    terminal: Terminal
    arguments: str

    def open(self, *, write: bool = False) -> Store:
        """The store. Raises StageError if nothing was collected into it yet."""
        if not self.path.exists():
            raise StageError(f"nothing was collected yet: no store at {self.path}", f"nullbooth collect{self.arguments}")
        return Store.open(self.path, write=write)

    def open_if_there(self) -> Store | None:
        return Store.open(self.path) if self.path.exists() else None

    def next(self, states: dict[str, StageState]) -> None:
        """Point to the first stage that is not complete."""
        for stage, found in states.items():
            if found.state != "complete":
                force = " --force" if found.state == "stale" else ""
                return self.terminal.next(f"nullbooth {stage}{self.arguments}{force}")
        self.terminal.next(f"nullbooth inspect{self.arguments}")


def start(common: Common) -> Session:
    """Find and read the config: a named file, the store's own, or the one in its usual place.

    A config that comes from the store brings the store's prompts with it, so that a moved store needs no prompt file.
    """
    terminal = Terminal(as_json=common.as_json, quiet=common.quiet)
    named_store = common.store or os.environ.get("NULLBOOTH_STORE")
    named_config = common.config or os.environ.get("NULLBOOTH_CONFIG")
    prompts: tuple[Prompt, ...] = ()
    _refuse_url(named_store)
    if named_store and not named_config and Store.exists(named_store):
        store = Store.open(named_store)
        config, source = build_config(store.config, common.overrides), f"in {named_store}"
        if config.original_knowledge_prompts == store.config["original_knowledge_prompts"]:
            prompts = store.prompts()
        arguments = f" -s {shlex.quote(named_store)}"
    else:
        file = find_config(named_config)
        if file is None:
            raise ConfigError(
                "no config: there is neither ./nullbooth.yaml nor ./configs/nullbooth.yaml",
                "give one with -c, or an existing store with -s",
            )
        config, source = load_config(file, common.overrides), str(file)
        given = (("-c", common.config), ("-s", common.store))
        arguments = "".join(f" {flag} {shlex.quote(value)}" for flag, value in given if value)
    if named_store:
        config = config.model_copy(update={"store": named_store})
    _refuse_url(config.store)
    arguments += "".join(f" --set {shlex.quote(override)}" for override in common.overrides)
    if common.verbose:
        terminal.note(f"config {source}; store {config.store}")
    return Session(config, Path(config.store), prompts or load_prompts(config.original_knowledge_prompts), terminal, arguments)


def _refuse_url(store: str | None) -> None:
    """As a path, s3://bucket would quietly become a folder called `s3:`."""
    if store is not None and "://" in store:
        raise ConfigError(f"the store {store} is a URL; stores are local folders so far", "name a folder with -s")


def run_stages(wanted: tuple[str, ...], common: Common, control: Control) -> None:
    """Run stages in order and answer with what the last one made."""
    session = start(common)
    if control.dry_run:
        store = session.open_if_there()
        plans = stages.plan(wanted, session.config, session.prompts, store, session.path, control.device)
        session.terminal.answer(report.plan_document(plans), _draw_plans)
        return
    needs_store = wanted[0] in ("covariance", "project")
    store = (
        session.open(write=True)
        if needs_store or Store.exists(session.path)
        else Store.create(session.path, session.config.model_dump())
    )
    with store.lock():
        session.terminal.follow(_events(wanted, session, store, control))
    states = stage_states(session.config, session.prompts, store)
    session.terminal.answer(*_answer(wanted[-1], session, store, states))
    session.next(states)


def _events(wanted: tuple[str, ...], session: Session, store: Store, control: Control) -> Iterator[Event]:
    several = len(wanted) > 1
    for stage in wanted:
        state = stage_states(session.config, session.prompts, store)[stage]
        # `run --force` replaces what is stale; a single stage with --force is done again whatever its state.
        force = control.force and (not several or state.state == "stale")
        if force and not control.yes and state.units_done and os.isatty(0) and os.isatty(2):
            typer.confirm(f"replace the {state.units_done} finished units of {stage}?", abort=True, err=True)
        run = stages.Run(session.config, session.prompts, store, control.device, force, control.limit)
        yield from stages.execute(stage, run)


def _answer(
    stage: str, session: Session, store: Store, states: dict[str, StageState]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    if stage == "schedule":
        return report.schedule_document(session.config, store), draw_schedule
    if stage == "project" and states["project"].state == "complete":
        return report.inspect_document(session.config, store), draw_summary
    return report.stage_document(stage, states[stage], store), _draw_stage


def draw_schedule(document: dict[str, Any]) -> Any:
    rows = [[str(step["index"]), step["key"], f"{step['timestep']:g}", f"{step['sigma']:.4f}"] for step in document["steps"]]
    return table(["step", "key", "timestep", "sigma"], rows, right=frozenset({0, 2, 3}))


def draw_summary(document: dict[str, Any]) -> str:
    totals, rule = document["totals"], document["rule"]
    return (
        f"{document['store']}: {totals['sites']} sites for {totals['weights']} weights, {rule['name']} {rule['value']:g}: "
        f"{totals['null_dim']} of {totals['dim']} dimensions are null, leakage at most {totals['largest_leakage']:.2g}"
    )


def _draw_stage(document: dict[str, Any]) -> str:
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
            size(plan["bytes_needed"]),
            size(plan["bytes_free"]),
            plan["device"],
            size(plan["device_bytes_free"]),
        ]
        for plan in document["stages"].values()
    ]
    return table(["stage", "done", "to do", "needs", "free", "device", "free there"], rows, right=frozenset({1, 2, 3, 4, 6}))
