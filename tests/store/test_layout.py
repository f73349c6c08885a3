"""Chunks of a collection: every timestep is in exactly one block, and blocks are as long as the target allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Site
from nullbooth_cli.store import Layout
from nullbooth_cli.store.layout import covariance_units
from tests.support.stores import FREE, TIMED


@given(
    num_steps=st.integers(1, 60),
    tokens=st.integers(1, 100),
    dim=st.integers(1, 64),
    batch_size=st.integers(1, 24),
    keep=st.sampled_from(["features", "moments", "both"]),
    chunk_bytes=st.integers(1, 1 << 20),
)
def test_blocks_cover_every_timestep_once_and_stay_below_the_target(
    num_steps: int, tokens: int, dim: int, batch_size: int, keep: str, chunk_bytes: int
) -> None:
    site = Site("layer", "q", "input", ("layer.to_q.weight",), False, tokens, dim)
    layout = Layout(keep, batch_size, "float16", chunk_bytes=chunk_bytes)
    blocks = layout.blocks(site, num_steps)
    assert [t for block in blocks for t in block] == list(range(num_steps))
    length = len(blocks[0])
    assert all(len(block) == length for block in blocks[:-1])
    assert len(blocks[-1]) <= length
    step_bytes = max(8 * dim * dim, 2 * batch_size * tokens * dim if layout.keeps_features else 0)
    assert length == 1 or length * step_bytes <= chunk_bytes


def test_a_site_that_no_timestep_changes_has_one_block() -> None:
    assert Layout("both", 2, "float32").blocks(FREE, 30) == [range(1)]


@pytest.mark.parametrize(("rows", "units"), [(0, 0), (1, 1), (3, 1), (4, 2)])
def test_a_last_unit_need_not_be_full(rows: int, units: int) -> None:
    assert Layout("features", 3, "float32").num_units(rows) == units


def test_units_of_covariance_are_the_blocks_of_each_site() -> None:
    layout = Layout("features", 2, "float32", chunk_bytes=2 * 8 * 9)
    assert covariance_units((FREE, TIMED), 3, layout) == [(FREE, range(1)), (TIMED, range(2)), (TIMED, range(2, 3))]


@pytest.mark.parametrize(("keep", "stored"), [("features", (True, False)), ("moments", (False, True)), ("both", (True, True))])
def test_what_is_stored(keep: str, stored: tuple[bool, bool]) -> None:
    layout = Layout(keep, 1, "float32")
    assert (layout.keeps_features, layout.keeps_moments) == stored
