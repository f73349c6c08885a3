"""A chunk as bytes: what Zarr writes is what we write, every value comes back, and every damage is found."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.store import Store
from nullbooth_cli.store.chunks import decode, encode
from tests.support.builders import features_at
from tests.support.stores import TIMED, start_collection

DTYPES = ["f2", "f4", "f8", "u2", "u4", "i8"]


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_zarr_reads_what_we_write_and_we_read_what_zarr_writes(tmp_path: Path, compression: str | None) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    start_collection(store, (TIMED,), num_steps=3, num_rows=4, dtype="float16", compression=compression)
    values = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float16)
    store.features.write(TIMED, range(1, 2), [2, 3], values[None])
    array = zarr.open_group(store.path, mode="r+")["features/mid.attn2.q"]
    np.testing.assert_array_equal(array[1, 2:4], values)
    array[2, 0:2] = values
    np.testing.assert_array_equal(features_at(store, TIMED, 2, 0), values)
    if compression is None:
        ours, theirs = (store.path / f"features/mid.attn2.q/c.{i}.0.0" for i in ("1.1", "2.0"))
        assert ours.read_bytes() == theirs.read_bytes()


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_value_comes_back_and_one_flipped_bit_does_not(dtype: str, shape: list[int], compressed: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    stored = np.dtype(dtype)
    values = draw.integers(0, 256, (int(np.prod(shape)), stored.itemsize), dtype=np.uint8).view(stored).reshape(shape)
    data = np.frombuffer(b"".join(encode(values, stored, compressed=compressed)), np.uint8).copy()
    found = decode(data, stored, tuple(shape), compressed=compressed)
    assert found.tobytes() == values.tobytes()  # NaNs too, to the bit
    data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        decode(data, stored, tuple(shape), compressed=compressed)


def test_an_empty_object_is_damage() -> None:
    with pytest.raises(ValueError, match="it is empty"):
        decode(np.zeros(0, np.uint8), np.dtype("f4"), (1,), compressed=False)
