"""Moments come back timestep by timestep, whatever shares a chunk, and staged ones beside them."""

import tempfile
from pathlib import Path

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import FactoredSums, Factoring, Sums
from nullbooth_cli.store import Store
from tests.support.builders import features_at
from tests.support.stores import FREE, STEP_BYTES, TIMED, small_store, start_collection


@settings(deadline=None)
@given(num_steps=st.integers(1, 9), num_rows=st.integers(1, 7), together=st.integers(1, 10), seed=st.integers(0, 2**32 - 1))
def test_timesteps_that_share_a_chunk_come_back_one_by_one(num_steps: int, num_rows: int, together: int, seed: int) -> None:
    """Whatever number of timesteps a chunk holds, features, moments and counts of each are the ones that were written."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((num_steps, num_rows, 2, 3)).astype(np.float32)
    sums = [Sums(draw.standard_normal((3, 3)), draw.standard_normal(3), int(draw.integers(1, 99))) for _ in range(num_steps)]
    with tempfile.TemporaryDirectory() as folder:
        made = Store.create(Path(folder) / "run.zarr", {})
        chunk_bytes = together * STEP_BYTES + STEP_BYTES // 2
        start_collection(made, (TIMED,), num_steps=num_steps, num_rows=num_rows, chunk_bytes=chunk_bytes)
        made.moments.create((TIMED,), num_steps, made.layout)
        blocks = made.blocks(TIMED)
        assert [t for block in blocks for t in block] == list(range(num_steps))
        assert len(blocks) == -(-num_steps // together)
        assert {len(block) for block in blocks[:-1]} <= {len(blocks[0])}
        assert len(blocks) * len(blocks[0]) - num_steps < len(blocks)  # timesteps of the last chunk that are wasted
        for block in blocks:
            for unit in range(-(-num_rows // 2)):
                rows = range(num_rows)[2 * unit : 2 * unit + 2]
                made.features.write(TIMED, block, rows, features[block.start : block.stop, rows.start : rows.stop])
            made.moments.write(TIMED, block, sums[block.start : block.stop])
            made.moments.stage(TIMED, block, sums[block.start : block.stop])
        group = zarr.open_group(made.path, mode="r")
        np.testing.assert_array_equal(group["features/mid.attn2.q"][:], features)
        np.testing.assert_array_equal(group["moments/mid.attn2.q/sum_xxT"][:], [of_step[0] for of_step in sums])
        np.testing.assert_array_equal(made.moments.counts(TIMED), [of_step[2] for of_step in sums])
        chosen = draw.permutation(num_steps)[:3].tolist()
        for t, found in zip(chosen, made.moments.read(TIMED, chosen), strict=True):
            np.testing.assert_array_equal(features_at(made, TIMED, t, 0), features[t, :2])
            staged = made.moments.read_staged(TIMED, blocks[t // len(blocks[0])])[t % len(blocks[0])]
            for ours, copy, expected in zip(found, staged, sums[t], strict=True):
                np.testing.assert_array_equal(ours, expected)
                np.testing.assert_array_equal(copy, expected)


def test_creating_again_empties_moments_and_progress(store: Store) -> None:
    store.moments.create((FREE, TIMED), 3, store.layout)
    store.moments.write(FREE, range(1), [Sums(np.eye(6), np.ones(6), 4)])
    store.moments.stage(FREE, range(1), [Sums(np.eye(6), np.ones(6), 5)])
    store.progress.commit("covariance", range(4))
    store.moments.create((FREE, TIMED), 3, store.layout)
    assert store.progress.cells("covariance").tolist() == [0, 0, 0, 0]  # one unit of FREE, three of TIMED
    assert not (store.path / "moments/mid.attn2.k/count/c.0").exists()
    assert not store.arrays.has("staged")


def test_processes_that_stage_at_once_make_one_array(store: Store) -> None:
    """Each of them finds none and makes it: the later one must not disown what the earlier one wrote."""
    store.moments.create((TIMED,), 3, store.layout)
    first, second = store.blocks(TIMED)[:2]
    sums = [Sums(np.eye(3), np.ones(3), 4)]
    store.moments.stage(TIMED, first, sums)
    made = store.path / "staged/mid.attn2.q/zarr.json"
    document = made.read_bytes()
    made.unlink()
    Store.open(store.path, write=True).moments.stage(TIMED, second, sums)
    assert made.read_bytes() == document
    again = Store.open(store.path)
    assert [again.moments.read_staged(TIMED, block)[0].count for block in (first, second)] == [4, 4]


def test_factors_round_trip_in_force_and_staged(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    store.moments.create((FREE, TIMED), 3, store.layout, Factoring(above=4, rank=2))
    store.write_record("covariance", {"settings": {"covariance.factor_above": 4, "covariance.factor_rank": 2}})
    draw = np.random.default_rng(0)
    grown, sums = (FactoredSums(draw.random((2, 6)), draw.random(6), 7, trace=9.5, delta=0.25) for _ in range(2))
    store.moments.write(FREE, range(1), [sums])
    store.moments.stage(FREE, range(1), [grown])
    for found, expected in ((store.moments.read_one(FREE, 0), sums), (store.moments.read_staged(FREE, range(1))[0], grown)):
        assert isinstance(found, FactoredSums)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert (store.moments.rows(FREE), store.moments.rows(TIMED)) == (2, 3)  # TIMED is not wide
    assert store.moments.array_names(TIMED) == ("sum_xxT", "sum_x", "count")
