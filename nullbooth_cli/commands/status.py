"""The command `nullbooth status`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Overrides, Quiet, StorePath, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.report.status import StageReport, StatusReport, Units

Check = Annotated[str | None, typer.Option("--check", metavar="STAGE", help="Exit 3 unless this stage is complete.")]
Watch = Annotated[bool, typer.Option("--watch", help="Follow a run until every stage (with --check: that one) is complete.")]
Interval = Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two reads of --watch.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read everything, check all checksums; exit 4 for damage.")]


def status(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    check: Check = None,
    watch: Watch = False,
    interval: Interval = 2,
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Report which stages are done, missing or stale, and why.

    Example: nullbooth status -s runs/toy.zarr --check project && echo ready

    --watch only reads the store, from any process or machine, and leaves the run alone. Off a terminal it prints a line whenever
    something changed, and with --json one document a line.

    Example: nullbooth status -s runs/toy.zarr --watch
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.hints import hint_of
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError, StoreError
    from nullbooth_cli.pipeline.differences import model_renamed
    from nullbooth_cli.pipeline.state import read_states, require
    from nullbooth_cli.report.status import status_report, verify_store
    from nullbooth_cli.settings.config import STAGES

    if check is not None and check not in STAGES:
        raise ConfigError(f"--check {check}: no such stage", f"name one of {', '.join(STAGES)}")
    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    if watch:
        from nullbooth_cli.commands.status_watch import watch_status

        if verify:
            raise ConfigError("--verify reads everything once, --watch reads the state repeatedly", "ask for one")
        return watch_status(common, check, interval)
    session = start(common)
    # Of a run that no config describes, there is nothing to report before it has a store.
    opened = session.open() if session.is_default else session.open_if_there()
    # All damage is listed below.
    tolerate = STAGES if verify else ()
    states = read_states(session.config, session.prompts, opened, tolerate=tolerate).stages
    verified = verify_store(opened, lambda error: hint_of(error, session.options)) if verify and opened else None
    renamed = model_renamed(session.config, opened)
    session.terminal.answer(status_report(session.url, opened, states, renamed=renamed, verify=verified), _draw)
    if verified and verified.damaged:
        first, count = verified.damaged[0], len(verified.damaged)
        raise StoreError(f"{count} of {verified.checked} pieces are damaged; {first.error}", first.hint)
    if check is not None:
        require(states, check, session.url)
    session.terminal.next(*next_command.after_status(states, session.options, session.url))


def _draw(report: "StatusReport") -> list[Any]:
    from nullbooth_cli.commands.tables import table

    rows = [row for stage, found in report.stages.items() for row in _rows(stage, found)]
    drawn = [report.store, table(["stage", "state", "units", "size", "stale because"], rows, right=frozenset({2, 3}))]
    drawn += [f"{name}, the same model or another: collect compares the weights" for name in report.renamed]
    if report.tasks:
        drawn.append(f"tasks: {', '.join(report.tasks)}")
    for name in report.unfinished_tasks:
        drawn.append(f"unfinished task {name}: the same command resumes, --forget {name} removes it")
    if report.verify:
        drawn.append(f"verified: {report.verify.checked} pieces read, {len(report.verify.damaged)} damaged")
        drawn += [f"  {damage.error}" for damage in report.verify.damaged]
    return drawn


def _rows(stage: str, found: "StageReport") -> list[list[str]]:
    from nullbooth_cli.formatting import size

    parts = (("  held-out", found.heldout), ("  attention maps", found.attention))
    return [
        [stage, found.state, _units(found), size(found.bytes), "; ".join(map(str, found.stale_because))],
        *([name, part.state, _units(part), "", ""] for name, part in parts if part),
    ]


def _units(found: "Units") -> str:
    return f"{found.units_done}/{'?' if found.units_total is None else found.units_total}"
