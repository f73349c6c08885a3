"""One chunk as bytes, as Zarr's own codecs [bytes, crc32c] or [bytes, blosc, crc32c] write it.

Whole chunks are all that nullbooth reads and writes, so the bytes need not pass through Zarr's event loop: that costs 1 to 3 ms
a chunk, more than a small chunk takes to write and sum up. Zarr reads what `encode` wrote, and the reverse (tests/test_store.py).
"""

from typing import Any

import crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

CHECKSUM_BYTES = 4


def encode(values: NDArray[Any], dtype: np.dtype[Any], compressed: bool) -> list[Any]:
    """The buffers that make up the file of a chunk, in order."""
    values = np.ascontiguousarray(values, dtype=dtype.newbyteorder("<"))
    body = Blosc("lz4", shuffle=Blosc.BITSHUFFLE).encode(values) if compressed else values.reshape(-1).view(np.uint8).data
    return [body, crc32c.crc32c(body).to_bytes(CHECKSUM_BYTES, "little")]


def decode(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], compressed: bool) -> NDArray[Any]:
    """The values of a chunk; a view of `data` where nothing is compressed. Raises ValueError, saying what is wrong."""
    if not len(data):
        raise ValueError("it is empty")
    body = data[:-CHECKSUM_BYTES]
    if crc32c.crc32c(body.data) != int.from_bytes(data[-CHECKSUM_BYTES:].tobytes(), "little"):
        raise ValueError("its checksum is wrong")
    stored = dtype.newbyteorder("<")
    if not compressed:
        return body.view(stored).reshape(shape)
    values = np.empty(shape, stored)
    Blosc().decode(body, out=values)
    return values
