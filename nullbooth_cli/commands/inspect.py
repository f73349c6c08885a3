"""The command `nullbooth inspect`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

Stores = Annotated[list[str] | None, typer.Argument(metavar="STORE", help="The store (as -s); a second one is compared with it.")]
Layer = Annotated[str | None, typer.Option("--layer", metavar="NAME", help="Only layers of this name, part of a name, or glob.")]
Feature = Annotated[str | None, typer.Option("--feature", metavar="NAME", help="Only this feature, such as q or ff_in.")]
Timestep = Annotated[float | None, typer.Option("--timestep", metavar="T", help="Only this timestep (project.scope: timestep).")]
SiteName = Annotated[
    str | None, typer.Option("--site", metavar="NAME", help="Only this site, LAYER.FEATURE; --plots then draws its moment.")
]
Plots = Annotated[str | None, typer.Option("--plots", metavar="DIR", help="Draw pictures into a folder.")]
PictureFormat = Annotated[str, typer.Option("--format", metavar="png|svg|pdf", help="Of the pictures.")]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="PROMPT",
        help="Draw the attention of each word of a prompt, by text or id (to --plots, or here).",
    ),
]
Layers = Annotated[
    bool, typer.Option("--layers", help="List the model's layers and the sites of each; needs no store and no weights.")
]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE", help="Measure a finished LoRA on the preserved prompts. Repeatable.")
]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one page with everything.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Comma-separated values on stdout.")]


def inspect(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    stores: Stores = None,
    layer: Layer = None,
    feature: Feature = None,
    timestep: Timestep = None,
    site: SiteName = None,
    plots: Plots = None,
    picture_format: PictureFormat = "png",
    attention: Attention = None,
    layers: Layers = False,
    lora: Loras = None,
    html: Html = None,
    device: Device = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the null space of every site: size, spectrum, leakage.

    A tensor that several projections share is one row: one projector for all of their weights, named below the table.

    With two stores, compare them: sizes, leakage, overlap of the null spaces, and the leakage of each on the other's prompts.

    Example: nullbooth inspect -s runs/toy.zarr --layer mid_block --feature q

    Example: nullbooth inspect runs/toy.zarr --plots pictures --html report.html

    Example: nullbooth inspect --lora style.safetensors -s runs/toy.zarr

    Example: nullbooth inspect --layers -c configs/sdxl.yaml
    """
    from nullbooth_cli.commands.inspect_compare import answer_comparison
    from nullbooth_cli.commands.inspect_layers import list_layers
    from nullbooth_cli.commands.inspect_lora import answer_loras
    from nullbooth_cli.commands.inspect_store import InspectOptions, answer_store
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two answers", "ask for one")
    named = [place for place in (store, *(stores or ())) if place]
    if len(named) > 2:
        raise ConfigError(f"inspect takes one store, or two to compare, not {len(named)}", "name them once")
    common = Common(
        config=config, store=named[0] if named else None, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose
    )
    of_one_store = plots or html or attention or as_csv or timestep is not None
    if layers:
        if of_one_store or site or lora or len(named) == 2:
            raise ConfigError("--layers gives a table of the model, or --json", "filter it with --layer and --feature")
        return list_layers(common, layer, feature, device)
    session = start(common)
    if lora:
        if plots or html or attention or layer or feature or site or timestep is not None or len(named) == 2:
            raise ConfigError("--lora gives a table of the modules of each file, --csv or --json", "leave the other options out")
        return answer_loras(session, lora, device=device, as_csv=as_csv)
    if len(named) == 2:
        if of_one_store:
            raise ConfigError("two stores give one answer, a table or --json", "draw one store at a time")
        return answer_comparison(session, named[1], layer=layer, feature=feature, site=site)
    options = InspectOptions(
        layer=layer,
        feature=feature,
        timestep=timestep,
        site=site,
        plots=plots,
        picture_format=picture_format,
        attention=attention,
        html=html,
        device=device,
        as_csv=as_csv,
    )
    answer_store(session, options)
