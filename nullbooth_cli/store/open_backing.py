"""The backing of a path or a URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullbooth_cli.store.backing import Backing


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def open_backing(place: str | Path, options: Mapping[str, Any] | None = None, *, read_only: bool = False) -> Backing:
    """The backing of a path or URL. `options` are what the object store's client takes; they are kept nowhere."""
    if is_url(place):
        from nullbooth_cli.store.remote import RemoteBacking

        return RemoteBacking(str(place), options or {}, read_only=read_only)
    from nullbooth_cli.store.local import LocalBacking

    return LocalBacking(Path(place), read_only=read_only)
