"""The command `nullbooth inspect`."""

from functools import partial
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
    from nullbooth_cli.commands.draw import warnings_of
    from nullbooth_cli.commands.inspect_compare import answer_comparison
    from nullbooth_cli.commands.inspect_layers import list_layers
    from nullbooth_cli.commands.inspect_pictures import PictureOptions, draw_pictures
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.report import documents

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two answers", "ask for one")
    named = [place for place in (store, *(stores or ())) if place]
    if len(named) > 2:
        raise ConfigError(f"inspect takes one store, or two to compare, not {len(named)}", "name them once")
    common = Common(
        config=config, store=named[0] if named else None, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose
    )
    if layers:
        if plots or html or attention or as_csv or timestep is not None or site or len(named) == 2:
            raise ConfigError("--layers gives a table of the model, or --json", "--layer and --feature filter it")
        return list_layers(common, layer, feature, device)
    session = start(common)
    if len(named) == 2:
        if plots or html or attention or as_csv or timestep is not None:
            raise ConfigError("two stores give one answer, a table or --json", "draw one store at a time")
        return answer_comparison(session, named[1], layer, feature, site)
    opened = session.open_finished()
    document = documents.inspect_document(session.config, opened, layer, feature, timestep, site)
    draw_pictures(
        session, opened, document, PictureOptions(plots, picture_format, attention, html, device, moments=site is not None)
    )
    if as_csv:
        session.terminal.text(_csv(document))
    else:
        # A picture for eyes: what is piped or parsed does not change with it.
        sparks = documents.sparklines(opened, document) if session.terminal.draws_on_screen else None
        session.terminal.answer(document, partial(_draw, sparks=sparks))
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


SPECTRUM = "spectrum"
# What goes first where a terminal is narrow.
DROPPED = ("noise floor", "condition", SPECTRUM, "tokens", "weights", "eff. rank", "dim", "held-out")


def _draw(document: dict[str, Any], sparks: list[str] | None = None) -> Any:
    from nullbooth_cli.commands.draw import draw_summary
    from nullbooth_cli.commands.tables import shortened, table

    sites = document["sites"]
    groups = {(site["layer"], site["feature"]): site for site in sites if len(site["weights"]) > 1}
    named = [site["layer"] for site in sites]
    named += [layer for site in groups.values() for layer, _ in map(_split, site["weights"])]
    shorter, ending = shortened(named)
    called = dict(zip(named, shorter, strict=True))
    columns: dict[str, list[str]] = {
        "layer": [called[site["layer"]] for site in sites],
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
    if sparks:
        columns[SPECTRUM] = sparks
    if document["totals"]["largest_heldout_leakage"] is None:
        del columns["held-out"]
    if document["scope"] == "pooled":
        del columns["timestep"]
    words = {"layer", "feature", "timestep", SPECTRUM}
    right = frozenset(i for i, name in enumerate(columns) if name not in words)
    drawn = table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], right=right, drop=DROPPED)
    shared = [f"{called[layer]} {feature} protects {_protected(site, called)}" for (layer, feature), site in groups.items()]
    return [drawn, *([f"layers end in {ending}"] if ending else []), *shared, draw_summary(document)]


def _protected(site: dict[str, Any], called: dict[str, str]) -> str:
    """The weights of a site by their projections, layers called as in the table: `to_k and to_v of mid_block, up_blocks.0`."""
    projections: dict[str, list[str]] = {}
    for layer, projection in map(_split, site["weights"]):
        projections.setdefault(called[layer], []).append(projection)
    layers: dict[str, list[str]] = {}
    for layer, names in projections.items():
        layers.setdefault(" and ".join(names), []).append(layer)
    return "; ".join(f"{names} of {', '.join(of_them)}" for names, of_them in layers.items())


def _split(weight: str) -> tuple[str, str]:
    """(layer, projection) of a weight."""
    layer, _, projection = weight.removesuffix(".weight").removesuffix(".0").rpartition(".")
    return layer, projection
