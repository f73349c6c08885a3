"""The command `nullbooth init`."""

from typing import TYPE_CHECKING, Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Quiet

if TYPE_CHECKING:
    from nullbooth_cli.report.answers import InitAnswer


def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for the files, made if it is missing.")] = ".",
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="The name of a config, a pipeline folder, or a hub id."),
    ] = "toy",
    ai_toolkit: Annotated[
        str | None,
        typer.Option("--ai-toolkit", metavar="FOLDER", help="Write only an extension of ai-toolkit, into its folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a config and a recipe to start from.

    Every key is there, with its comment, and the prompt files that the config names are copied. The configs are toy (the
    embedded model), flux, lcm, pixart, sd14, sd15, sd21, sd3, sdxl. A pipeline folder or hub id gets the config that fits it;
    only its config files are read. The recipe is for nullbooth train, which trains all of them but lcm.

    Example: nullbooth init my-dog --model sd15 && cd my-dog && nullbooth doctor
    """
    import os
    import shlex
    from pathlib import Path

    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.formatting import listed
    from nullbooth_cli.report.answers import InitAnswer
    from nullbooth_cli.settings.places import expanded
    from nullbooth_cli.settings.shipped import configs
    from nullbooth_cli.settings.starter import RECIPE, seen_from, starter, write_files

    terminal = Terminal(as_json=as_json, quiet=quiet)
    if ai_toolkit is not None:
        from nullbooth_cli.commands.init_ai_toolkit import init_ai_toolkit

        return init_ai_toolkit(terminal, expanded(ai_toolkit), force=force)
    place = Path(expanded(folder))
    if model in configs():
        name, named = model, None
    else:
        from nullbooth_cli.model.nearest_config import nearest_config
        from nullbooth_cli.model.sources import Source

        if "/" not in model and not os.path.exists(expanded(model)):
            raise ConfigError(
                f"no config and no model folder is called {model}",
                f"name one of {', '.join(configs())}, a pipeline folder, or a hub id (owner/name)",
            )
        kind, name = nearest_config(Source(expanded(model)))
        named = seen_from(str(place), model)
        terminal.note(f"{model} is a {kind}: the config {name} fits it")
    start = starter(name, named)
    paths = [str(place / each) for each in start.files]
    if (existing := [path for path in paths if os.path.lexists(path)]) and not force:
        raise ConfigError(f"these files exist: {listed(existing)}", "name another folder, or add --force to replace them")
    write_files(place, start.files)
    if RECIPE not in start.files:
        terminal.note(f"no {RECIPE}: nullbooth train cannot train a model like {name}; constrain a script of your own for it")
    terminal.answer(InitAnswer(folder=str(place), model=start.model, config=name, files=paths), _draw)
    inside = "" if place == Path() else f"cd {shlex.quote(str(place))} && "
    terminal.next(f"{inside}nullbooth doctor && nullbooth run")


def _draw(answer: "InitAnswer") -> str:
    """A line a file; of a folder with many only the folder."""
    from collections import Counter
    from os.path import dirname

    count = Counter(map(dirname, answer.files))
    return "\n".join(dict.fromkeys(f"{dirname(file)}/" if count[dirname(file)] > 5 else file for file in answer.files))
