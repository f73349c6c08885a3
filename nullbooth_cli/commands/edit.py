"""The command `nullbooth edit`."""

from pathlib import Path
from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose


def edit(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE TARGET", help="Pairs of prompts: the one to edit, then the one it should look like."),
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the edited pipeline.")] = ...,  # type: ignore[assignment]
    file: Annotated[str | None, typer.Option("--pairs", metavar="FILE", help="More pairs: YAML, `source: target`.")] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", metavar="alphaedit|uce", help="Within the null space, or weighed against the preserved prompts."
        ),
    ] = "alphaedit",
    ridge: Annotated[
        float, typer.Option("--ridge", metavar="A", help="A larger one changes the weights less and misses more of TARGET.")
    ] = 1e-2,
    preserve: Annotated[float, typer.Option("--preserve", metavar="B", help="uce: the weight of the preserved prompts.")] = 1.0,
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Give prompts the meaning of other prompts, in closed form.

    Saves an edited pipeline. The k and v weights of cross-attention change so that SOURCE gives the keys and values of
    TARGET. The answer reports how much of that is missing, and how far the weights have drifted on the preserved prompts.

    Example: nullbooth edit "a sks star" "a red star" -s runs/toy.zarr --output edited
    """
    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.collect.open_model import load_model
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.editing.edit import edit as edit_pipeline
    from nullbooth_cli.editing.edit import read_pairs, require_possible
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.model.quiet import quiet_libraries
    from nullbooth_cli.nullspace.export import is_taken, written
    from nullbooth_cli.report.answers import EditAnswer

    path = Path(output)
    if is_taken(path):
        raise ConfigError(f"{output} exists already", "name another folder")
    pairs = read_pairs(prompts or [], file)
    session = start(Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose))
    opened = OpenStore(session.open_finished())
    require_possible(opened, pairs, method=method, tokens="all", ridge=ridge, preserve=preserve)  # before seconds of loading
    pipe = load_model(session.config, device)
    report = edit_pipeline(pipe, opened, pairs, method=method, ridge=ridge, preserve=preserve)  # type: ignore[arg-type]  # it refuses others
    if report.cut_off:
        session.terminal.note(report.cut_off)
    with written(path) as folder, quiet_libraries():
        pipe.save_pretrained(folder)
    answer = EditAnswer(
        store=session.url,
        output=output,
        method=report.method,
        pairs=report.pairs,
        weights=report.weights,
        missing=report.missing,
        drift=report.drift,
    )
    session.terminal.answer(answer, lambda _: [str(report), output])
    session.terminal.next(next_command.measure(output, session.options, next(iter(pairs))))
