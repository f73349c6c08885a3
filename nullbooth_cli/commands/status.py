"""The command `nullbooth status`."""

from typing import Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Overrides, Quiet, StorePath, Verbose


def status(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    check: Annotated[str | None, typer.Option("--check", metavar="STAGE", help="Exit 3 unless this stage is complete.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which stages are done, which are missing, and which are stale and why.

    Example: nullbooth status -s runs/toy.zarr --check project && echo ready
    """
    from nullbooth_cli import report
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.config import STAGES
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.states import require, stage_states

    if check is not None and check not in STAGES:
        raise ConfigError(f"--check {check}: no such stage", f"stages: {', '.join(STAGES)}")
    session = start(Common(config, store, tuple(overrides or ()), as_json, quiet, verbose))
    opened = session.open_if_there()
    states = stage_states(session.config, session.prompts, opened)
    session.terminal.answer(report.status_document(str(session.path), opened, states), _draw)
    if check is not None:
        require(states, check, session.path)
    session.next(states)


def _draw(document: dict[str, Any]) -> Any:
    from nullbooth_cli.console import size, table

    rows = []
    for stage, found in document["stages"].items():
        total = "?" if found["units_total"] is None else str(found["units_total"])
        reasons = "; ".join(f"{because['field']}: {because['old']} -> {because['new']}" for because in found["stale_because"])
        rows.append([stage, found["state"], f"{found['units_done']}/{total}", size(found["bytes"]), reasons])
    return [document["store"], table(["stage", "state", "units", "size", "stale because"], rows, right=frozenset({2, 3}))]
