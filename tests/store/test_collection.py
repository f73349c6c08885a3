"""A collection is started, grows and loses its features; what is there stays, and a kill leaves nothing that looks whole."""

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import RELEASED, Layout, Store, create_collection, extend_collection, release_units
from nullbooth_cli.store.feature_arrays import FeatureArrays
from tests.support.builders import features_at
from tests.support.stores import FREE, TIMED, write_features


def test_a_new_collection_has_nothing_of_the_one_before(store: Store) -> None:
    write_features(store, 0)
    store.progress.commit("collect", 0)
    store.moments.partial_sums("1-of-1.0").create((FREE, TIMED), 3)
    create_collection(store, sites=(TIMED,), num_steps=3, num_rows=7, layout=Layout("features", 3, "float32"))
    assert store.sites == (TIMED,)
    assert Store.open(store.path).sites == (TIMED,)
    assert store.rows == ()
    assert store.progress.cells("collect").tolist() == [0, 0, 0]
    assert store.moments.all_partial_sums() == []
    assert not store.arrays.has(f"features/{FREE.name}")
    assert not list(store.path.glob("features/*/c.*"))


def test_a_collection_grows_and_what_is_there_stays(store: Store) -> None:
    written = [write_features(store, unit) for unit in (0, 1)]
    store.progress.commit("collect", [0, 1])
    extend_collection(store, 9)
    store.write_rows(5, [None, Prompt("new"), Prompt("newer"), Prompt("newest")])
    assert store.progress.cells("collect").tolist() == [1, 1, 0, 0, 0]
    assert [row for row, _ in store.members(2)] == [4]
    for unit, values in enumerate(written):
        np.testing.assert_array_equal(features_at(store, TIMED, 0, unit), values)
    again = np.ones((3, 1, 2, 3), np.float32)
    for t in range(3):
        store.features.write(TIMED, range(t, t + 1), [8], again[t : t + 1])
    np.testing.assert_array_equal(features_at(store, TIMED, 2, 4), again[2])


def test_released_units_lose_their_features_and_no_others(store: Store) -> None:
    for unit in range(3):
        write_features(store, unit)
    store.progress.commit("collect", range(3))
    release_units(store, [0, 2])
    assert store.progress.cells("collect").tolist() == [RELEASED, 1, RELEASED]
    assert features_at(store, TIMED, 0, 1).shape == (2, 2, 3)
    with pytest.raises(StoreError, match="it is missing"):
        features_at(store, TIMED, 0, 0)


def test_cells_say_released_before_a_chunk_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    write_features(store, 0)
    store.progress.commit("collect", 0)
    monkeypatch.setattr(FeatureArrays, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        release_units(store, [0])
    assert store.progress.cells("collect").tolist() == [RELEASED, 0, 0]
