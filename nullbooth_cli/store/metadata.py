"""Metadata of groups and arrays: one `zarr.json` each, as Zarr v3 defines it, with a seal among its attributes.

The seal is a digest of the whole document, of its path and of the store's id. So an edited value is found, and so is a document
that was moved here from another place. Chunks have a tag in the same spirit (`store/chunks.py`): a digest of the store's id, the
path of their array, the id of this array, which is drawn anew whenever the array is made, and the number of the chunk.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

ID, SEAL = "id", "seal"  # attributes; groups below the root have no id
TAG_BYTES = 8
_CRC = {"name": "crc32c"}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_TEXTS = {"name": "vlen-utf8", "configuration": {}}


def new_id() -> str:
    """An id that no other store or array has."""
    return secrets.token_hex(8)


def group_document(attributes: Mapping[str, object]) -> dict[str, Any]:
    """The document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def array_document(
    *,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any] | str | type[str],
    fill: float | str,
    attributes: Mapping[str, object],
    compressed: bool,
) -> dict[str, Any]:
    """The document of an array. To Zarr each chunk is a shard with one inner chunk, which leaves room for a tag."""
    stored = np.dtype(object if dtype is str else dtype)
    codecs = [_TEXTS if stored.kind == "O" else _BYTES, *([_blosc(stored.itemsize)] if compressed else []), _CRC]
    sharding = {"chunk_shape": list(chunks), "codecs": codecs, "index_codecs": [_BYTES, _CRC], "index_location": "end"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "string" if stored.kind == "O" else stored.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
    }


def _blosc(itemsize: int) -> dict[str, Any]:
    how = {"typesize": itemsize, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    return {"name": "blosc", "configuration": how}


def sealed(document: Mapping[str, Any], path: str, store_id: str) -> bytes:
    """The bytes of a document that belongs to a path of a store."""
    document = json.loads(json.dumps(document))  # as it is read again: keys are strings, tuples are lists
    seal = _seal(document, path, store_id)
    return json.dumps({**document, "attributes": {**document["attributes"], SEAL: seal}}, indent=2).encode()


def parsed(data: bytes) -> dict[str, Any]:
    """A document as it was stored, not checked further. Raises ValueError with the reason if it is not one."""
    if not data:
        raise ValueError("it is empty")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("it does not describe a Zarr group or array")
    return document


def attributes_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the attributes of a document; empty if it has none."""
    attributes = document.get("attributes")
    return dict(attributes) if isinstance(attributes, dict) else {}


def unsealed(document: Mapping[str, Any], path: str, store_id: str) -> dict[str, Any]:
    """A document without its seal. Raises ValueError with the reason if the seal is not that of this document and place."""
    attributes = attributes_of(document)
    seal = attributes.pop(SEAL, None)
    document = {**document, "attributes": attributes}
    if seal != _seal(document, path, store_id):
        raise ValueError("it was edited, or belongs to another place or run")
    return document


def _seal(document: Mapping[str, Any], path: str, store_id: str) -> str:
    content = json.dumps([store_id, path, document], sort_keys=True)
    return blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class StoredArray:
    """An array as its document describes it. `dtype` is object for texts, `id` is of this making of the array."""

    document: Mapping[str, Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    compressed: bool
    id: str
    _place: blake2b

    @classmethod
    def described(cls, document: Mapping[str, Any], path: str, store_id: str) -> "StoredArray":
        """The array at a path that a document describes."""
        data_type, fill, array_id = document["data_type"], document["fill_value"], document["attributes"][ID]
        sharding = document["codecs"][0]["configuration"]
        return cls(
            document=document,
            shape=tuple(document["shape"]),
            chunks=tuple(document["chunk_grid"]["configuration"]["chunk_shape"]),
            dtype=np.dtype(object if data_type == "string" else data_type),
            fill=np.nan if fill == "NaN" else fill,
            compressed=any(codec["name"] == "blosc" for codec in sharding["codecs"]),
            id=array_id,
            _place=blake2b(json.dumps([store_id, path, array_id]).encode(), digest_size=TAG_BYTES),
        )

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes, as JSON gives them; do not change them."""
        attributes: Mapping[str, Any] = self.document["attributes"]
        return attributes

    def tag(self, index: tuple[int, ...]) -> bytes:
        """The tag of a chunk, which no other chunk has. Cost: about 0.5 us."""
        place = self._place.copy()
        place.update(".".join(map(str, index)).encode())
        return place.digest()
