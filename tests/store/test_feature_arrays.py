"""Features come back as they were written, whatever shares a chunk."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.store import Layout, Store
from nullbooth_cli.store.chunks import TAIL_BYTES
from nullbooth_cli.tensors import pack, unpack
from tests.support.builders import features_at
from tests.support.stores import STEP_BYTES, TIMED, start_collection, write_features


def test_the_arrays_on_disk(store: Store) -> None:
    group = zarr.open_group(store.path, mode="r")
    timed, free = group["features/mid.attn2.q"], group["features/mid.attn2.k"]
    assert (timed.shape, timed.chunks) == ((3, 5, 2, 3), (1, 2, 2, 3))
    assert free.shape[0] == 1
    (sharding,) = timed.metadata.codecs
    assert sharding.chunk_shape == timed.chunks
    assert [type(codec).__name__ for codec in sharding.codecs] == ["BytesCodec", "Crc32cCodec"]
    assert np.isnan(timed.fill_value)
    assert group["progress/collect"].chunks == (1,)


def test_features_come_back_whole_and_in_parts(store: Store) -> None:
    written = [write_features(store, unit) for unit in (2, 0, 1)]
    for unit, values in zip((2, 0, 1), written, strict=True):
        np.testing.assert_array_equal(features_at(store, TIMED, 0, unit), values)


def test_zeros_are_stored_too(store: Store) -> None:
    store.features.write(TIMED, range(1, 2), [0, 1], np.zeros((1, 2, 2, 3), np.float32))
    assert (store.path / "features/mid.attn2.q/c.1.0.0.0").exists()
    assert (features_at(store, TIMED, 1, 0) == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: str) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    start_collection(store, (TIMED,), num_steps=1, num_rows=2, dtype=dtype, compression="lz4")
    values = torch.randn(2, 2, 3).to(getattr(torch, dtype))
    store.features.write(TIMED, range(1), [0, 1], pack(values, dtype)()[None])
    assert store.layout == Layout("features", 2, dtype, "lz4", STEP_BYTES)
    assert torch.equal(unpack(features_at(store, TIMED, 0, 0), dtype), values)


def test_a_row_whose_prompt_was_taken_out_is_not_read(store: Store) -> None:
    values = write_features(store, 1)
    store.write_rows(2, [None, Prompt("prompt 3")])
    np.testing.assert_array_equal(features_at(store, TIMED, 0, 1), values[1:])


def test_bytes_of_a_chunk_count_the_rows_that_fill_it_up(store: Store) -> None:
    write_features(store, 2)
    assert store.features.chunk_nbytes(TIMED) == 2 * 2 * 3 * 4
    assert (store.path / "features/mid.attn2.q/c.0.2.0.0").stat().st_size == 2 * 2 * 3 * 4 + TAIL_BYTES
