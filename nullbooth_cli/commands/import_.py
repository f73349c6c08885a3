"""The command `nullbooth import`."""

from pathlib import Path
from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, ConfigFile, Overrides, Quiet


def import_(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder: STEP/LAYER/{q,k,v,out}_covariance.npy.")],
    out: Annotated[str, typer.Option("-s", "--store", metavar="PATH", help="The new store.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a new store from the covariances of plain files.

    Each file needs a {q,k,v,out}_metadata.json beside it with timestep and tokens, as nullbooth export writes it. The files
    do not name model and prompts, so the resulting projectors cannot be checked against a model.

    Example: nullbooth import exported/run_20260101_120000 -s runs/imported.zarr && nullbooth project -s runs/imported.zarr
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.commands.draw import draw_stage
    from nullbooth_cli.commands.find_config import find_config, storage_options_of
    from nullbooth_cli.pipeline import import_moments
    from nullbooth_cli.pipeline.state import stage_states
    from nullbooth_cli.report.status import stage_answer
    from nullbooth_cli.settings.config import build_config, load_config, public_settings
    from nullbooth_cli.store import Store, locked, open_backing

    terminal = Terminal(as_json=as_json, quiet=quiet)
    file = find_config(config)
    given = load_config(file, overrides or ()) if file else build_config({}, overrides or ())
    options = storage_options_of(overrides or ())
    import_moments.find_covariances(Path(folder))  # refuses a wrong folder before a store is made
    with locked(open_backing(out, options)):
        store = Store.open_or_create(out, public_settings(given), options)
        terminal.follow(import_moments.import_covariances(Path(folder), store, given))
    states = stage_states(build_config(store.config), store.prompts(), store)
    terminal.answer(stage_answer("covariance", states["covariance"], store), draw_stage)
    terminal.next(next_command.of_the_new_store(out, overrides or ()))
