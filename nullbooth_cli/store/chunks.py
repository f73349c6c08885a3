"""One chunk as bytes, as Zarr's codec `sharding_indexed` writes a shard with a single inner chunk.

    values | CRC-32C | tag | offset 0, length of the first two | CRC-32C of offset and length

The codecs within are [bytes, crc32c], [bytes, blosc, crc32c], or [vlen-utf8, crc32c] for texts. Zarr reads what offset and length
say, so that the tag is in a gap between the inner chunk and its index: eight bytes that say which chunk this is
(`StoredArray.tag`).

nullbooth writes and reads whole chunks only, so the bytes need not pass through Zarr's event loop. Zarr reads what `encode`
wrote (tests/store/test_chunks.py).

Zarr's own array API would add 29 % to the CPU time of covariance, and 1.2 to 7.3 % to that of collect (shapes of the toy, 4 units
of 24 prompts, one thread): `python -m tests.benchmarks.chunks --threads 1 --repeats 5 --megabytes 20`. This module could go if
both were under 3 %, and Zarr left a place for a tag.
"""

from typing import Any

import crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from nullbooth_cli.store.backing import Bytes
from nullbooth_cli.store.metadata import TAG_BYTES

CHECKSUM_BYTES = 4
INDEX_BYTES = 16
TAIL_BYTES = CHECKSUM_BYTES + TAG_BYTES + INDEX_BYTES + CHECKSUM_BYTES


def encode(values: NDArray[Any], dtype: np.dtype[Any], tag: bytes, *, compressed: bool) -> list[Bytes]:
    """The buffers that make up the object of a chunk, in order: the values in a stored dtype, and what follows them."""
    body: Bytes
    if dtype.kind == "O":
        body = bytes(VLenUTF8().encode(values))
    else:
        values = np.ascontiguousarray(values, dtype=dtype.newbyteorder("<"))
        body = Blosc("lz4", shuffle=Blosc.BITSHUFFLE).encode(values) if compressed else values.reshape(-1).view(np.uint8).data
    return [body, _tail(body, tag)]


def _tail(body: Bytes, tag: bytes) -> bytes:
    index = bytes(8) + (len(body) + CHECKSUM_BYTES).to_bytes(8, "little")
    return _checksum(body) + tag + index + _checksum(index)


def _checksum(data: Bytes) -> bytes:
    return crc32c.crc32c(data).to_bytes(CHECKSUM_BYTES, "little")


def decode(
    data: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], tag: bytes, *, compressed: bool
) -> NDArray[Any]:
    """The values of a chunk; a view of `data` without compression.

    Raises ValueError with the reason if it is damaged, or is not the chunk of this tag.
    """
    if not len(data):
        raise ValueError("it is empty")
    body, tail = data[:-TAIL_BYTES], data[-TAIL_BYTES:].tobytes()
    found_tag = tail[CHECKSUM_BYTES : CHECKSUM_BYTES + TAG_BYTES]
    if tail != _tail(body.data, found_tag):
        raise ValueError("its checksum is wrong")
    if found_tag != tag:
        raise ValueError("it belongs to another place: another chunk, array or run")
    if dtype.kind == "O":
        return np.asarray(VLenUTF8().decode(body)).reshape(shape)
    stored = dtype.newbyteorder("<")
    if not compressed:
        return body.view(stored).reshape(shape)
    values = np.empty(shape, stored)
    Blosc().decode(body, out=values)
    return values
