"""The command `nullbooth merge`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Overrides, Quiet


def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE", help="Two or more stores with complete moments.")],
    out: Annotated[str, typer.Option("-s", "--store", metavar="PATH", help="The new store.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Add the moments of separate collections into a new store.

    They must agree in model, schedule and settings, and share no prompt. The new store has only moments; more prompts can
    be added to it.

    Example: nullbooth merge runs/a.zarr runs/b.zarr -s runs/all.zarr && nullbooth project -s runs/all.zarr
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.commands.draw import draw_stage
    from nullbooth_cli.commands.find_config import storage_options_of
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.pipeline.merge import check_mergeable
    from nullbooth_cli.pipeline.merge import merge as merge_stores
    from nullbooth_cli.pipeline.state import stage_states
    from nullbooth_cli.report.status import stage_answer
    from nullbooth_cli.settings.config import build_config
    from nullbooth_cli.store import Store, locked, open_backing

    if len(stores) < 2 or len(set(stores)) < len(stores):
        raise ConfigError(
            f"merge takes two or more different stores, got {' '.join(stores)}", "name at least two stores, each once"
        )
    terminal = Terminal(as_json=as_json, quiet=quiet)
    options = storage_options_of(overrides or ())
    sources = [Store.open(place, options=options) for place in stores]
    check_mergeable(sources)
    with locked(open_backing(out, options)):
        store = Store.open_or_create(out, sources[0].config, options)
        terminal.follow(merge_stores(sources, store))
    states = stage_states(build_config(store.config), store.prompts(), store)
    terminal.answer(stage_answer("covariance", states["covariance"], store), draw_stage)
    terminal.next(next_command.of_the_new_store(out, overrides or ()))
