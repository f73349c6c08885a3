"""The attributes that make a Zarr group a nullbooth store, `format` and `format_version`; opening a store checks them."""

from collections.abc import Mapping
from importlib.metadata import version

import zarr

from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store.backing import Backing

FORMAT = "nullbooth"
FORMAT_VERSION = 4
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
_ANOTHER_PLACE = "name another place for the store; nothing was changed"


def create_group(backing: Backing, config: Mapping[str, object]) -> zarr.Group:
    """Make an empty store. Raises StoreError if something else is there."""
    require_empty(backing)
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": dict(config),
        "packages": {name: version(name) for name in PACKAGES},
        "records": {},
        "sites": [],
    }
    try:
        return zarr.create_group(backing.zarr, attributes=attributes)
    except OSError as error:
        raise backing.failure(error) from error


def open_group(backing: Backing, *, write: bool) -> zarr.Group:
    """Open a store. Raises StoreError if there is none, or it is foreign, or of another format version."""
    place = backing.url
    if not backing.exists():
        raise StoreError(f"no store at {place}", Rerun("collect", otherwise=" makes one; or name the place of another"))
    try:
        group = zarr.open_group(backing.zarr, mode="r+" if write else "r", use_consolidated=False, zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{place} is not a Zarr v3 group", "name the folder or URL that collect made") from error
    if group.attrs.get("format") != FORMAT:
        raise StoreError(f"{place} is a Zarr group, but not a nullbooth store", _ANOTHER_PLACE)
    found = group.attrs.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise StoreError(f"{place} has store format {found}; this nullbooth reads {FORMAT_VERSION}", "upgrade nullbooth with pip")
    if found < FORMAT_VERSION:
        raise StoreError(
            f"{place} has store format {found}, of an earlier nullbooth; this one reads {FORMAT_VERSION}",
            "collect into another place, or remove this one",
        )
    return group


def is_there(backing: Backing) -> bool:
    """Whether a Zarr group is there, of nullbooth or not. Cost: one small object."""
    return backing.get("zarr.json") is not None


def require_empty(backing: Backing) -> None:
    """Raise StoreError if anything is there already."""
    if backing.is_foreign():
        raise StoreError(f"{backing.url} exists and is not a nullbooth store", _ANOTHER_PLACE)
