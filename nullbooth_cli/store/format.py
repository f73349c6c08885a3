"""The attributes that make a Zarr group a nullbooth store, `format` and `format_version`; opening a store checks them."""

import contextlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from nullbooth_cli.datatypes import TASKS
from nullbooth_cli.errors import NullboothError, StoreError
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.metadata import ID, SEAL, attributes_of, group_document, new_id, parsed, sealed, unsealed
from nullbooth_cli.store.missing import no_store

FORMAT = "nullbooth"
FORMAT_VERSION = 5
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
_ROOT = "zarr.json"
_ANOTHER_PLACE = "name another place for the store; nothing was changed"


class Root(NamedTuple):
    """The attributes of a store, without the seal, and the bytes that they were read from or written as."""

    attributes: dict[str, Any]
    data: bytes


def create_root(backing: Backing, config: Mapping[str, object], store_id: str | None = None) -> Root:
    """Make an empty store, with a new id or the given one. Raises StoreError if something else is there."""
    require_empty(backing)
    attributes = {
        ID: store_id or new_id(),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": dict(config),
        "packages": {name: version(name) for name in PACKAGES},
        "records": {},
        "sites": [],
    }
    return write_root(backing, attributes)


def write_root(backing: Backing, attributes: dict[str, Any]) -> Root:
    """Put the attributes of a store in the place of earlier ones, by one atomic write."""
    data = sealed(group_document(attributes), "", attributes[ID])
    backing.put(_ROOT, [data])
    return Root(attributes, data)


def open_root(backing: Backing, store_id: str | None = None) -> Root:
    """The attributes of a store.

    Raises StageError if there is no store, StoreError if it is foreign, damaged, of another version or not of the given id.
    """
    found = backing.get(_ROOT)
    if found is None:
        raise _no_root(backing)
    place, data = backing.url, found.tobytes()
    try:
        document = parsed(data)
        if not any(f'"{word}"'.encode() in data for word in (FORMAT, SEAL)):  # one flipped byte leaves one of them
            raise StoreError(f"{place} is a Zarr group, but not a nullbooth store", _ANOTHER_PLACE)
        _check_version(place, document)
        attributes = _unsealed(document)
        if store_id not in (None, attributes[ID]):
            raise ValueError("it belongs to another run")
    except ValueError as error:
        raise _damaged(place, str(error), store_id) from error
    return Root(attributes, data)


def _unsealed(document: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = unsealed(document, "", attributes_of(document).get(ID, ""))["attributes"]
    return attributes


def _check_version(place: str, document: dict[str, Any]) -> None:
    """Raise StoreError for a store of another format version, ValueError if only the number was edited."""
    found = attributes_of(document).get("format_version")
    if found == FORMAT_VERSION or not isinstance(found, int):
        return  # without a number the seal is wrong
    with contextlib.suppress(ValueError):
        _unsealed({**document, "attributes": {**attributes_of(document), "format_version": FORMAT_VERSION}})
        raise _damaged(place, f"its format_version was {FORMAT_VERSION}, and is {found}")
    if found > FORMAT_VERSION:
        raise StoreError(f"{place} has store format {found}; this nullbooth reads {FORMAT_VERSION}", "upgrade nullbooth with pip")
    raise StoreError(
        f"{place} has store format {found}, of an earlier nullbooth; this one reads {FORMAT_VERSION}",
        "collect into another place, or remove this one",
    )


def _no_root(backing: Backing) -> NullboothError:
    """The error for a place without the metadata of a store."""
    place = backing.url
    if not backing.exists():
        return no_store(backing)
    if _has_groups(backing):
        return _damaged(place, "it is missing")
    return _foreign(backing) or StoreError(f"{place} is not a Zarr v3 group", "name the folder or URL that collect made")


def _foreign(backing: Backing) -> StoreError | None:
    """The error for a place in a format that people may take for a store."""
    place = backing.url
    if backing.begins_with(b"PK\x03\x04"):
        return StoreError(
            f"{place} is a zip file, and a store is a folder or a URL", "unpack it, and name the folder that it makes"
        )
    if any(backing.get(name) is not None for name in (".zgroup", ".zarray", ".zmetadata")):
        return StoreError(f"{place} has Zarr format 2; this nullbooth reads format 3", "name the folder or URL that collect made")
    return None


def _has_groups(backing: Backing) -> bool:
    """Whether a group is there that every collection has."""
    return any(backing.get(f"{group}/{_ROOT}") is not None for group in ("schedule", "progress"))


def _damaged(place: str, why: str, store_id: str | None = None) -> StoreError:
    """The error for the metadata of a store; `store_id` is that of a store inside another one."""
    inner = (store_id or "").partition("-")[2]
    hint = "put this file back from a copy, or remove the store and collect again"
    if inner.startswith(f"{TASKS}/"):
        hint = record_again(inner)
    return StoreError(f"{place}: {_ROOT} is damaged: {why}", hint)


def record_again(inner: str) -> str:
    """What mends a damaged task, by its name inside the store around it."""
    return f"remember the task {inner.removeprefix(f'{TASKS}/')} again, or forget it: nothing else is lost with it"


def is_there(backing: Backing) -> bool:
    """Whether a Zarr group is there, of nullbooth or not. Cost: one small object."""
    return backing.get(_ROOT) is not None


def require_empty(backing: Backing) -> None:
    """Raise StoreError if anything is there already."""
    if backing.is_foreign():
        if _has_groups(backing):
            raise _no_root(backing)
        if foreign := _foreign(backing):
            raise foreign
        raise StoreError(f"{backing.url} exists and is not a nullbooth store", _ANOTHER_PLACE)
