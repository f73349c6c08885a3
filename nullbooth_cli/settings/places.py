"""Paths and URLs that a user writes: `~` and `$NAME` are expanded as in a shell, and what no file system takes is refused."""

import os
import re

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.texts import flaw, quoted

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expanded(place: str) -> str:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` replaced as in a shell; a URL as it is.

    Raises ConfigError for a variable that is not set, a user who is not known, a URL with a password, and a text that is empty,
    too long, or has characters that no path can have.
    """
    if not place.strip():
        raise ConfigError("the path is empty", "name a place; '.' is the current folder")
    if problem := flaw(place):
        raise ConfigError(f"the path {quoted(place)} {problem}", "name a path without it")
    scheme, is_url, rest = place.partition("://")
    if is_url:
        user, at, _ = rest.partition("/")[0].rpartition("@")
        if at and (":" in user or not scheme.startswith("abfs")):  # abfs://container@account/path
            raise ConfigError(f"the {scheme} URL carries credentials", "put them into storage_options, or into the environment")
        return place
    found = os.path.expanduser(_VARIABLE.sub(_value, place))
    if found.startswith("~") and place.startswith("~"):
        raise ConfigError(f"the path {quoted(place)} begins with a user who is not known here", "write the whole path")
    names = os.fsencode(found).split(os.sep.encode())
    if len(os.fsencode(found)) > limits.PATH_BYTES or max(map(len, names)) > limits.NAME_BYTES:
        most = f"{limits.NAME_BYTES} bytes in a name, {limits.PATH_BYTES} in all"
        raise ConfigError(f"the path {quoted(found)} is longer than file systems take ({most})", "name a shorter path")
    return found


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise ConfigError(
            f"the path {quoted(found.string)} names ${name}, which is not set", f"set {name}, or write the path out"
        )
    return os.environ[name]
