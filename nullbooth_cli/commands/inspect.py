"""The command `nullbooth inspect`."""

from typing import Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Overrides, Quiet, StorePath, Verbose


def inspect(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Only layers of this name, part of a name, or glob.")
    ] = None,
    feature: Annotated[str | None, typer.Option("--feature", metavar="q|k|v|out", help="Only this feature.")] = None,
    timestep: Annotated[
        float | None, typer.Option("--timestep", metavar="T", help="Only this timestep (project.scope: timestep).")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on stdout.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the null space of every site: its size, the spectrum it was cut from, and how much of the data leaks into it.

    A tensor that several projections share is one row: one projector for all of their weights, named below the table.

    Example: nullbooth inspect -s runs/toy.zarr --layer mid_block --feature q
    """
    from nullbooth_cli import report
    from nullbooth_cli.commands.session import start, warnings_of
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.states import require, stage_states

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two answers", "ask for one")
    session = start(Common(config, store, tuple(overrides or ()), as_json, quiet, verbose))
    opened = session.open()
    states = stage_states(session.config, session.prompts, opened)
    require(states, "project", session.url)
    document = report.inspect_document(session.config, opened, layer, feature, timestep)
    if as_csv:
        session.terminal.text(_csv(document))
    else:
        session.terminal.answer(document, _draw)
    session.terminal.warn(warnings_of(document))


def _csv(document: dict[str, Any]) -> str:
    import csv
    import io

    text = io.StringIO()
    rows = [
        {
            **{k: v for k, v in site.items() if k != "arrays"},
            "weights": " ".join(site["weights"]),
            "warnings": "; ".join(site["warnings"]),
        }
        for site in document["sites"]
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw(document: dict[str, Any]) -> Any:
    from nullbooth_cli.commands.session import draw_summary
    from nullbooth_cli.console import shortened, table

    sites = document["sites"]
    layers, ending = shortened([site["layer"] for site in sites])
    columns: dict[str, list[str]] = {
        "layer": layers,
        "feature": [site["feature"] for site in sites],
        "weights": [str(len(site["weights"])) for site in sites],
        "timestep": [site["key"] for site in sites],
        "dim": [str(site["dim"]) for site in sites],
        "tokens": [f"{site['count']:,}" for site in sites],
        "null_dim": [str(site["null_dim"]) for site in sites],
        "eff. rank": [f"{site['effective_rank']:.1f}" for site in sites],
        "condition": ["inf" if site["condition"] is None else f"{site['condition']:.1e}" for site in sites],
        "leakage": [f"{site['leakage']:.2e}" for site in sites],
        "held-out": ["" if site["heldout_leakage"] is None else f"{site['heldout_leakage']:.2e}" for site in sites],
        "noise floor": [f"{site['noise_floor']:.0e}" for site in sites],
    }
    if document["totals"]["largest_heldout_leakage"] is None:
        del columns["held-out"]
    if document["scope"] == "pooled":
        del columns["timestep"]
    words = {"layer", "feature", "timestep"}
    right = frozenset(i for i, name in enumerate(columns) if name not in words)
    drawn = table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], right=right)
    groups = {
        (layer, site["feature"]): site["weights"] for layer, site in zip(layers, sites, strict=True) if len(site["weights"]) > 1
    }
    shared = [f"{layer} {feature} protects {_listed(weights)}" for (layer, feature), weights in groups.items()]
    return [drawn, *([f"layers end in {ending}"] if ending else []), *shared, draw_summary(document)]


def _listed(weights: list[str]) -> str:
    """Weights by their layer: `a.attn2.to_k and to_v; b.attn2.to_k and to_v`."""
    layers: dict[str, list[str]] = {}
    for weight in weights:
        layer, _, projection = weight.removesuffix(".weight").removesuffix(".0").rpartition(".")
        layers.setdefault(layer, []).append(projection)
    return "; ".join(f"{layer}.{' and '.join(projections)}" for layer, projections in layers.items())
