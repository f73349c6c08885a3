"""The command `nullbooth status`."""

from typing import Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Overrides, Quiet, StorePath, Verbose


def status(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    check: Annotated[str | None, typer.Option("--check", metavar="STAGE", help="Exit 3 unless this stage is complete.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a run from beside it until all (--check: that stage) is complete.")
    ] = False,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks of --watch.")] = 2,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything, check all checksums; exit 4 for damage.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which stages are done, which are missing, and which are stale and why.

    Example: nullbooth status -s runs/toy.zarr --check project && echo ready

    --watch only reads the store, from any process or machine, and leaves the run alone. Off a terminal it prints a line whenever
    something changed, and with --json one document a line.

    Example: nullbooth status -s runs/toy.zarr --watch
    """
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError, StoreError
    from nullbooth_cli.pipeline.run import model_renamed
    from nullbooth_cli.pipeline.state import require, stage_states
    from nullbooth_cli.report import documents
    from nullbooth_cli.settings.config import STAGES

    if check is not None and check not in STAGES:
        raise ConfigError(f"--check {check}: no such stage", f"stages: {', '.join(STAGES)}")
    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    if watch:
        from nullbooth_cli.commands.status_watch import watch_status as follow

        if verify:
            raise ConfigError("--verify reads everything once, --watch looks again and again", "ask for one")
        return follow(common, check, interval)
    session = start(common)
    opened = session.open_if_there()
    states = stage_states(session.config, session.prompts, opened)
    document = documents.status_document(session.url, opened, states)
    document["renamed"] = [vars(difference) for difference in model_renamed(session.config, opened)]
    if verify and opened:
        document["verify"] = _verified(opened)
    session.terminal.answer(document, _draw)
    if verify and document.get("verify", {}).get("damaged"):
        damaged = document["verify"]["damaged"]
        first = damaged[0]
        raise StoreError(f"{len(damaged)} of {document['verify']['checked']} pieces are damaged; {first['error']}", first["hint"])
    if check is not None:
        require(states, check, session.url)
    session.next(states)


def _verified(store: Any) -> dict[str, Any]:
    from nullbooth_cli.settings.config import STAGES
    from nullbooth_cli.store.verify import Damage, damages

    checked, damaged = 0, []
    for place in filter(None, (store, store.heldout())):
        for stage in (*STAGES, "attention"):
            for result in damages(place, stage):
                checked += 1
                if isinstance(result, Damage):
                    damaged.append({"stage": stage, "error": result.error.message, "hint": result.error.hint})
    return {"checked": checked, "damaged": damaged}


def _draw(document: dict[str, Any]) -> Any:
    from nullbooth_cli.commands.tables import table
    from nullbooth_cli.formatting import size

    rows = []
    for stage, found in document["stages"].items():
        total = "?" if found["units_total"] is None else str(found["units_total"])
        reasons = "; ".join(f"{because['field']}: {because['old']} -> {because['new']}" for because in found["stale_because"])
        rows.append([stage, found["state"], f"{found['units_done']}/{total}", size(found["bytes"]), reasons])
        for part, name in (("heldout", "  held-out"), ("attention", "  attention maps")):
            if beside := found.get(part):
                total = "?" if beside["units_total"] is None else str(beside["units_total"])
                rows.append([name, beside["state"], f"{beside['units_done']}/{total}", "", ""])
    drawn = [document["store"], table(["stage", "state", "units", "size", "stale because"], rows, right=frozenset({2, 3}))]
    drawn += [
        f"{name['field']}: {name['old']} -> {name['new']}, the same model or another: collect compares the weights"
        for name in document["renamed"]
    ]
    if "verify" in document:
        found = document["verify"]
        drawn.append(f"verified: {found['checked']} pieces read, {len(found['damaged'])} damaged")
        drawn += [f"  {damage['error']}" for damage in found["damaged"]]
    return drawn
