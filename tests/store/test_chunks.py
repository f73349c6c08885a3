"""A chunk as bytes: Zarr reads what we write, every value comes back, and every damage is found."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Store
from nullbooth_cli.store.chunks import decode, encode
from tests.support.stores import TIMED, start_collection

DAMAGE = r"its checksum is wrong|it belongs to another place"
DTYPES = ["f2", "f4", "f8", "u2", "u4", "i8"]
TAG = b"the tag."


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_zarr_reads_what_we_write_whole_or_in_part_and_we_refuse_what_it_writes(tmp_path: Path, compression: str | None) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    start_collection(store, (TIMED,), num_steps=3, num_rows=4, dtype="float16", compression=compression)
    values = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float16)
    store.features.write(TIMED, range(1, 2), [2, 3], values[None])
    array = zarr.open_group(store.path, mode="r+")["features/mid.attn2.q"]
    assert array.chunks == (1, 2, 2, 3)
    np.testing.assert_array_equal(array[1, 2:4], values)
    assert array[1, 3, 1, 2] == values[1, 1, 2]
    array[2, 0:2] = values
    with pytest.raises(StoreError, match=r"chunk c\.2\.0\.0\.0 is damaged"):
        store.features.read(TIMED, range(2, 3), 0)


def draw_values(draw: np.random.Generator, dtype: str, shape: list[int]) -> np.ndarray:
    stored = np.dtype(dtype)
    return draw.integers(0, 256, (int(np.prod(shape)), stored.itemsize), dtype=np.uint8).view(stored).reshape(shape)


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_value_comes_back_and_with_one_changed_byte_none_does(
    dtype: str, shape: list[int], compressed: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    stored, values = np.dtype(dtype), draw_values(draw, dtype, shape)
    data = np.frombuffer(b"".join(encode(values, stored, TAG, compressed=compressed)), np.uint8).copy()
    found = decode(data, stored, tuple(shape), TAG, compressed=compressed)
    assert found.tobytes() == values.tobytes()  # NaNs too, to the bit
    data[draw.integers(len(data))] ^= draw.integers(1, 256)
    with pytest.raises(ValueError, match=DAMAGE):
        decode(data, stored, tuple(shape), TAG, compressed=compressed)


@given(st.lists(st.text(), max_size=9), st.integers(0, 2**32 - 1))
def test_texts_come_back_and_with_one_changed_byte_none_does(texts: list[str], seed: int) -> None:
    draw, values = np.random.default_rng(seed), np.array([*texts, ""], object)
    data = np.frombuffer(b"".join(encode(values, np.dtype(object), TAG, compressed=False)), np.uint8).copy()
    assert decode(data, np.dtype(object), values.shape, TAG, compressed=False).tolist() == values.tolist()
    data[draw.integers(len(data))] ^= draw.integers(1, 256)
    with pytest.raises(ValueError, match=DAMAGE):
        decode(data, np.dtype(object), values.shape, TAG, compressed=False)


@settings(max_examples=20)
@given(st.booleans(), st.integers(0, 2**32 - 1))
def test_the_start_of_a_chunk_is_damage_wherever_it_was_cut(compressed: bool, seed: int) -> None:
    values = draw_values(np.random.default_rng(seed), "f4", [3, 2])
    data = np.frombuffer(b"".join(encode(values, values.dtype, TAG, compressed=compressed)), np.uint8)
    for end in range(1, len(data)):
        with pytest.raises(ValueError, match="its checksum is wrong"):
            decode(data[:end], values.dtype, (3, 2), TAG, compressed=compressed)


def test_a_chunk_of_another_tag_is_refused() -> None:
    data = np.frombuffer(b"".join(encode(np.ones(2), np.dtype("f8"), TAG, compressed=False)), np.uint8)
    with pytest.raises(ValueError, match="it belongs to another place: another chunk, array or run"):
        decode(data, np.dtype("f8"), (2,), b"another.", compressed=False)


def test_an_empty_object_is_damage() -> None:
    with pytest.raises(ValueError, match="it is empty"):
        decode(np.zeros(0, np.uint8), np.dtype("f4"), (1,), TAG, compressed=False)
