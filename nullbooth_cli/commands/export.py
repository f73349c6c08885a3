"""The command `nullbooth export`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Overrides, Quiet, StorePath, Verbose

FORMATS = {".safetensors": "safetensors", ".pt": "alphaedit"}


def export(
    out: Annotated[str, typer.Argument(metavar="OUT", help="FILE.safetensors, FILE.pt, or a folder for a run folder.")],
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    dense: Annotated[bool, typer.Option("--dense", help="safetensors: P itself instead of its smaller factor.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", metavar="float32|float64", help="safetensors: precision.")] = "float32",
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help=".pt: only layers with this name or glob.")] = None,
    feature: Annotated[
        str | None, typer.Option("--feature", metavar="NAME", help=".pt: only this feature, such as q or ff_in.")
    ] = None,
    only_covariance: Annotated[
        bool, typer.Option("--only-covariance", help="Folder: the moments of every timestep, and no projectors.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the projectors in a format of other programs.

    A .safetensors file has one tensor for each site, and a JSON header by weight. A .pt file has AlphaEdit's stack of P, for
    sites of one size. A folder gets run_YYYYMMDD_HHMMSS/STEP/LAYER/{q,k,v,out}_{covariance,projection}.npy and _metadata.json.

    Example: nullbooth export projectors.safetensors -s runs/toy.zarr
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.nullspace.export import export_alphaedit, export_folder, export_safetensors, is_taken
    from nullbooth_cli.pipeline.project import decomposition_of
    from nullbooth_cli.pipeline.state import require, stage_states
    from nullbooth_cli.report.answers import ExportAnswer

    path = Path(out)
    form = FORMATS.get(path.suffix, "folder")
    for given, flag, of in (
        (dense or dtype != "float32", "--dense and --dtype", "safetensors"),
        (layer or feature, "--layer and --feature", "alphaedit"),
        (only_covariance, "--only-covariance", "folder"),
    ):
        if given and form != of:
            raise ConfigError(f"{flag} have no meaning for {out}", "see nullbooth export --help")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"--dtype {dtype} is not a precision", "give float32 or float64")
    if form == "folder" and path.suffix and not path.is_dir():
        formats = " or ".join(FORMATS)
        raise ConfigError(f"{out}: {path.suffix} is not a format", f"name a file in {formats}, or a folder without an ending")
    if form != "folder" and is_taken(path) and not force:
        raise ConfigError(f"{out} exists", "name another file, or add --force")
    session = start(Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose))
    opened = session.open()
    require(stage_states(session.config, session.prompts, opened), "covariance" if only_covariance else "project", session.url)
    answer = ExportAnswer(store=session.url, format=form, path=out)
    if form == "safetensors":
        header = export_safetensors(opened, path, dense=dense, dtype=dtype)
        answer = replace(answer, weights=list(header["weights"]))
    elif form == "alphaedit":
        answer = replace(answer, sites=export_alphaedit(opened, path, layer, feature))
    else:
        settings = decomposition_of(session.config, opened)
        rule, value = session.config.project.rule()
        made = export_folder(opened, settings, path, rule=rule, value=value, only_covariance=only_covariance)
        answer = replace(answer, path=str(made))
    session.terminal.answer(answer, lambda found: f"{found.store} -> {found.path} ({found.format})")
    session.terminal.next(next_command.read_export(form, answer.path))
