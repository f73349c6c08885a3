"""One chunk as bytes, as Zarr's own codecs [bytes, crc32c] or [bytes, blosc, crc32c] write it.

nullbooth writes and reads whole chunks only, so the bytes need not pass through Zarr's event loop. Zarr reads what `encode`
wrote, and the reverse (tests/store/test_chunks.py).

Zarr's own array API would add 17 % to the CPU time of covariance, and 0.6 to 1.6 % to that of collect (shapes of the toy, 4 units
of 24 prompts, one thread): `python -m tests.benchmarks.chunks --threads 1 --repeats 5 --megabytes 20`. This module could go if
both were under 3 %.
"""

from typing import Any

import crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from nullbooth_cli.store.backing import Bytes

CHECKSUM_BYTES = 4


def encode(values: NDArray[Any], dtype: np.dtype[Any], *, compressed: bool) -> list[Bytes]:
    """The buffers that make up the object of a chunk, in order: the values in a stored dtype, and their CRC-32C."""
    values = np.ascontiguousarray(values, dtype=dtype.newbyteorder("<"))
    body = Blosc("lz4", shuffle=Blosc.BITSHUFFLE).encode(values) if compressed else values.reshape(-1).view(np.uint8).data
    return [body, crc32c.crc32c(body).to_bytes(CHECKSUM_BYTES, "little")]


def decode(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], *, compressed: bool) -> NDArray[Any]:
    """The values of a chunk; a view of `data` without compression. Raises ValueError with the reason if it is damaged."""
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
