"""Hints of the library in the words of the command line."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.settings.secrets import is_secret

# The options that name the config and the store, in the form that every command takes.
CARRIED = {"-c": "-c", "--config": "-c", "-s": "-s", "--store": "-s", "--set": "--set"}
TAUGHT = {"-o": "-o", "--output": "-o"}
OUTPUT = "taught"  # of `teach`, unless another is named


def carried_options(arguments: Sequence[str]) -> list[str]:
    """The words of a command line that name its config, its store and its overrides, without credentials.

    Those of `train` name a recipe, which the stages do not take. The config of `teach` is in its output.
    """
    if "train" in arguments[:1]:
        return []
    if "teach" in arguments[:1]:
        from nullbooth_cli.settings.starter import CONFIG

        output = dict(_given(arguments, TAUGHT)).get("-o", OUTPUT)
        return ["-c", str(Path(output) / CONFIG)]
    return options_of(_given(arguments, CARRIED))


def _given(arguments: Sequence[str], flags: Mapping[str, str]) -> list[tuple[str, str]]:
    """The options among these that are on a command line, in one form each, with their values."""
    found: list[tuple[str, str]] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:] and "=", word[2:])
        if name in flags:
            found.append((flags[name], value if equals else next(words, "")))
    return found


def options_of(given: Iterable[tuple[str, str | None]]) -> list[str]:
    """The words of options on a command line; those that are not given are left out, and overrides with credentials."""
    return [word for flag, value in given if value and not (flag == "--set" and is_secret(value)) for word in (flag, value)]


def hint_of(error: NullboothError, options: Sequence[str] = ()) -> str:
    """The hint of an error; a stage to run is written as a command, with the `options` of the one that failed."""
    rerun = error.rerun
    if rerun is None:
        return error.hint
    words = ["nullbooth", rerun.stage, *["--force"] * rerun.force, *["--repair"] * rerun.repair]
    if rerun.store and "-s" in options:  # the error knows better which store it is about
        place = list(options).index("-s")
        options = [*options[:place], *options[place + 2 :]]
    words += options
    words += ["-s", rerun.store] if rerun.store else []
    for change in rerun.settings:
        words += ["--set", change]
    otherwise = rerun.otherwise.lstrip(" ,;")
    return shlex.join(words) + (f"\n{otherwise}" if otherwise else "")  # a line of its own: the command can be pasted
