"""Sums of one process: a checkpoint puts sums and units in force together, and a kill before its end leaves the ones before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store import PartialSums, Store, pack_sums, partial_sums
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.background import Writer
from nullbooth_cli.store.partial_sums import check_disjoint, unpack_sums
from tests.support.stores import FREE, TIMED


def sums_of(seed: int) -> list[tuple[object, list[np.ndarray]]]:
    draw = np.random.default_rng(seed)
    return [
        (site, [pack_sums(Sums(draw.random((site.dim, site.dim)), draw.random(site.dim), seed + t)) for t in range(count)])
        for site, count in ((FREE, 1), (TIMED, 3))
    ]


def assert_in_force(part: PartialSums, seed: int) -> None:
    for site, packed in sums_of(seed):
        found = list(part.read(site))
        assert len(found) == len(packed)
        for sums, expected in zip(found, packed, strict=True):
            np.testing.assert_array_equal(pack_sums(sums), expected)


@pytest.fixture
def part(store: Store) -> PartialSums:
    made = store.moments.partial_sums("1-of-1.0")
    made.create((FREE, TIMED), 3)
    return made


@given(st.integers(1, 8), st.integers(0, 2**53), st.integers(0, 2**32 - 1))
def test_packed_sums_come_back_to_the_bit(dim: int, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    sums = Sums(draw.standard_normal((dim, dim)), draw.standard_normal(dim), count)
    packed = pack_sums(sums)
    assert packed.shape == (dim + 2, dim)
    for found, expected in zip(unpack_sums(packed), sums, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_checkpoint_replaces_the_sums_and_their_units(store: Store, part: PartialSums) -> None:
    assert part.units == ()
    for number, units in enumerate([(2,), (0, 2), (0, 1, 2)]):
        part.checkpoint(sums_of(number), reversed(units))
        again = Store.open(store.path).moments.all_partial_sums()
        assert [found.units for found in again] == [units]
        assert_in_force(again[0], number)


def test_a_kill_within_a_checkpoint_leaves_the_one_before(
    store: Store, part: PartialSums, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.checkpoint(sums_of(0), [0])
    write, written = ArrayGroup.write_chunk, []

    def killed(self: ArrayGroup, *arguments: object) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments)
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as during:
        during.setattr(ArrayGroup, "write_chunk", killed)
        with pytest.raises(KeyboardInterrupt):
            part.checkpoint(sums_of(1), [0, 1])
    assert written
    again = Store.open(store.path, write=True).moments.partial_sums(part.name)
    assert again.units == (0,)
    assert_in_force(again, 0)
    again.checkpoint(sums_of(2), [0, 1])
    assert_in_force(again, 2)


def test_blocks_that_threads_write_come_into_force_together(part: PartialSums) -> None:
    part.checkpoint(sums_of(0), [0])

    def stopped() -> None:
        with part.replaced([0, 1]) as write:
            write(TIMED, part.blocks(TIMED)[0], np.stack(sums_of(1)[1][1]))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    block = part.blocks(TIMED)[0]
    with pytest.raises(ValueError, match=f"1 timesteps for a block of {len(block)}"), part.replaced([0, 1]) as write:
        write(TIMED, block, np.stack(sums_of(1)[1][1][:1]))
    assert part.units == (0,)
    assert_in_force(part, 0)
    with Writer() as writer, part.replaced([0, 1]) as write:
        for site, packed in sums_of(1):
            for block in part.blocks(site):
                writer.submit(0, write, site, block, np.stack(packed[block.start : block.stop]))
        writer.drain()
    assert part.units == (0, 1)
    assert_in_force(part, 1)


def test_timesteps_of_a_block_share_a_chunk(part: PartialSums, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_sums, "SUMS_CHUNK_BYTES", 2 * 8 * (TIMED.dim + 2) * TIMED.dim)
    part.create((FREE, TIMED), 3)
    assert part.blocks(TIMED) == [range(2), range(2, 3)]
    assert part.blocks(FREE) == [range(1)]
    part.checkpoint(sums_of(0), [0])
    assert_in_force(part, 0)


def test_a_part_that_was_never_made_has_no_units_and_no_slot(store: Store) -> None:
    part = store.moments.partial_sums("nobody")
    assert part.units == ()
    with pytest.raises(StoreError, match="has no partial sums nobody"):
        _ = part.slot


def test_a_unit_in_two_parts_is_an_error_that_names_both(store: Store, part: PartialSums) -> None:
    other = store.moments.partial_sums("2-of-2.0")
    other.create((FREE, TIMED), 3)
    part.checkpoint(sums_of(0), [0, 1])
    other.checkpoint(sums_of(0), [2])
    check_disjoint(store.moments.all_partial_sums())
    other.checkpoint(sums_of(0), [1, 2])
    with pytest.raises(StoreError, match=r"unit 1 is in the partial sums 1-of-1\.0 and 2-of-2\.0") as caught:
        check_disjoint(store.moments.all_partial_sums())
    assert caught.value.rerun == Rerun("collect", force=True, store=store.url)
