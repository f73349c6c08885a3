"""The command `nullbooth inspect`."""

from typing import Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose


def inspect(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    stores: Annotated[
        list[str] | None, typer.Argument(metavar="STORE", help="The store (as -s); a second one is compared with it.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Only layers of this name, part of a name, or glob.")
    ] = None,
    feature: Annotated[str | None, typer.Option("--feature", metavar="q|k|v|out", help="Only this feature.")] = None,
    timestep: Annotated[
        float | None, typer.Option("--timestep", metavar="T", help="Only this timestep (project.scope: timestep).")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="Only this site, LAYER.FEATURE; --plots then draws its moment.")
    ] = None,
    plots: Annotated[str | None, typer.Option("--plots", metavar="DIR", help="Draw pictures into a folder.")] = None,
    picture_format: Annotated[str, typer.Option("--format", metavar="png|svg|pdf", help="Of the pictures.")] = "png",
    attention: Annotated[
        str | None,
        typer.Option("--attention", metavar="PROMPT_ID", help="Draw where each word of a prompt looks (to --plots, else here)."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="List the model's layers and what each would record; needs no store and no weights.")
    ] = False,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one page that holds everything.")] = None,
    device: Device = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on stdout.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the null space of every site: its size, the spectrum it was cut from, and how much of the data leaks into it.

    A tensor that several projections share is one row: one projector for all of their weights, named below the table.

    With two stores, compare them: sizes, leakage, overlap of the null spaces, and how each leaks on the prompts of the other.

    Example: nullbooth inspect -s runs/toy.zarr --layer mid_block --feature q

    Example: nullbooth inspect runs/toy.zarr --plots pictures --html report.html

    Example: nullbooth inspect --layers -c configs/sdxl.yaml
    """
    from nullbooth_cli import report
    from nullbooth_cli.commands.listing import list_layers
    from nullbooth_cli.commands.looking import Looks, compare, look
    from nullbooth_cli.commands.session import start, warnings_of
    from nullbooth_cli.errors import ConfigError

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two answers", "ask for one")
    named = [place for place in (store, *(stores or ())) if place]
    if len(named) > 2:
        raise ConfigError(f"inspect takes one store, or two to compare, not {len(named)}", "name them once")
    common = Common(config, named[0] if named else None, tuple(overrides or ()), as_json, quiet, verbose)
    if layers:
        if plots or html or attention or as_csv or timestep is not None or site or len(named) == 2:
            raise ConfigError("--layers gives a table of the model, or --json", "--layer and --feature filter it")
        return list_layers(common, layer, feature, device)
    session = start(common)
    if len(named) == 2:
        if plots or html or attention or as_csv or timestep is not None:
            raise ConfigError("two stores give one answer, a table or --json", "draw one store at a time")
        return compare(session, named[1], layer, feature, site)
    opened = session.open_finished()
    document = report.inspect_document(session.config, opened, layer, feature, timestep, site)
    look(session, opened, document, Looks(plots, picture_format, attention, html, device, moments=site is not None))
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
