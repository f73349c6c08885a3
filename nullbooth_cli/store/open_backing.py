"""The backing of a path or a URL."""

from collections.abc import Mapping
from pathlib import Path

from nullbooth_cli.store.backing import Backing


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL, not a folder."""
    return "://" in str(place)


def open_backing(place: str | Path, options: Mapping[str, object] | None = None, *, read_only: bool = False) -> Backing:
    """The backing of a path or URL. `options` are those of obstore, for a URL; they are never written down.

    Raises ConfigError for a URL or options that cannot be used. Nothing is read yet.
    """
    if is_url(place):
        from nullbooth_cli.store.remote import RemoteBacking

        return RemoteBacking(str(place), options or {}, read_only=read_only)
    from nullbooth_cli.store.local import LocalBacking

    return LocalBacking(Path(place), read_only=read_only)
