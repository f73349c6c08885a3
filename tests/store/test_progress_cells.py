"""Progress cells: 0 until a unit is done, written one by one; a damaged cell is an error, or counts as the caller says."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store import Store


def test_no_stage_that_was_not_started_has_cells(store: Store) -> None:
    assert store.progress.cells("covariance").tolist() == []


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sets(st.integers(0, 6)), st.integers(0, 2**32 - 1)), max_size=6))
def test_a_cell_has_the_value_that_was_marked_last(
    tmp_path_factory: pytest.TempPathFactory, marks: list[tuple[set[int], int]]
) -> None:
    store = Store.create(tmp_path_factory.mktemp("progress") / "run.zarr", {})
    store.progress.create("collect", 5)
    store.progress.mark("collect", [3], 9)
    store.progress.extend("collect", 7)
    expected = [0, 0, 0, 9, 0, 0, 0]
    for units, cell in marks:
        store.progress.mark("collect", units, cell)
        expected = [cell if unit in units else before for unit, before in enumerate(expected)]
    assert Store.open(store.path).progress.cells("collect").tolist() == expected
    np.testing.assert_array_equal(store.progress.done("collect"), np.array(expected) > 0)


def test_commit_marks_one_unit_or_several(store: Store) -> None:
    store.progress.commit("collect", 1)
    store.progress.commit("collect", [0, 2], 5)
    assert store.progress.cells("collect").tolist() == [5, 1, 5]


def test_creating_again_forgets_the_cells(store: Store) -> None:
    store.progress.commit("collect", range(3))
    store.progress.create("collect", 2)
    assert store.progress.cells("collect").tolist() == [0, 0]


def test_a_damaged_cell_is_an_error_and_can_be_reset(store: Store) -> None:
    store.progress.commit("collect", range(3))
    cell = store.path / "progress/collect/c.1"
    cell.write_bytes(cell.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=r"progress/collect chunk c\.1 is damaged: its checksum is wrong") as caught:
        store.progress.cells("collect")
    assert caught.value.rerun == Rerun("collect", repair=True, store=store.url)
    assert store.progress.cells("collect", damaged=7).tolist() == [1, 7, 1]
    store.progress.reset_damaged("collect")
    assert store.progress.cells("collect").tolist() == [1, 0, 1]


def test_the_pace_of_each_stage_is_written_beside_its_cells(store: Store) -> None:
    assert store.progress.pace("collect") is None
    store.progress.note_pace("collect", 1.5)
    store.progress.note_pace("covariance", 0.25)
    again = Store.open(store.path)
    assert (again.progress.pace("collect"), again.progress.pace("covariance")) == (1.5, 0.25)
    attributes = zarr.open_group(store.path / "progress", mode="r").attrs.asdict()
    assert attributes.items() >= {"collect_seconds_per_unit": 1.5, "covariance_seconds_per_unit": 0.25}.items()
