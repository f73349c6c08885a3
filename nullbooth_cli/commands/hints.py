"""Hints of the library in the words of the command line."""

import shlex

from nullbooth_cli.errors import NullboothError


def hint_of(error: NullboothError) -> str:
    """The hint of an error; a stage to run is written as a command."""
    rerun = error.rerun
    if rerun is None:
        return error.hint
    words = ["nullbooth", rerun.stage]
    words += ["--force"] * rerun.force + ["--repair"] * rerun.repair
    words += ["-s", rerun.store] if rerun.store else []
    for change in rerun.settings:
        words += ["--set", change]
    return shlex.join(words) + rerun.otherwise
