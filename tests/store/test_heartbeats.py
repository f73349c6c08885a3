"""The notes of processes in a store: round trips, and what other readers of the store find."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullbooth_cli.store import Store
from tests.support.notes import note


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run.zarr", {})


def test_a_note_replaces_the_earlier_one_of_its_process(store: Store) -> None:
    first, other = note("1-of-1.0", units=0, last=None), note("1-of-1.1")
    for written in (first, other, latest := note("1-of-1.0", units=4)):
        store.heartbeats.write(written)
    assert Store.open(store.path).heartbeats.read() == [latest, other]
    store.heartbeats.remove("1-of-1.0")
    store.heartbeats.remove("1-of-1.7")
    assert store.heartbeats.read() == [other]


def test_other_readers_find_a_group(store: Store) -> None:
    """Zarr warns of objects that it does not know, and warnings are errors here."""
    store.heartbeats.write(note("1-of-1.0"))
    store.heartbeats.write(note("1-of-1.1", units=3))
    group = zarr.open_group(store.path, mode="r")
    assert dict(group["activity/1-of-1.1"].attrs)["units"] == 3
    assert len(list(group.members(max_depth=None))) == 3


def test_a_note_of_an_earlier_version_is_read(store: Store) -> None:
    """It had the pace in it too."""
    written = note("1-of-1.0")
    store.heartbeats.write(written)
    file = store.path / "activity/1-of-1.0/zarr.json"
    document = json.loads(file.read_text())
    document["attributes"]["seconds_per_unit"] = 2.5
    file.write_text(json.dumps(document))
    assert store.heartbeats.read() == [written]


NOTE = asdict(note("1-of-1.0"))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def put(store: Store, name: str, document: bytes) -> None:
    path = store.path / "activity" / name / "zarr.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(document)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each note takes the place of the one before
@given(st.sampled_from(sorted(NOTE)), ANY_JSON)
def test_a_note_of_any_values_is_a_note_or_is_left_out(store: Store, field: str, value: Any) -> None:
    put(store, "1-of-1.0", json.dumps({"attributes": {**NOTE, field: value}}).encode())
    for found in store.heartbeats.read():
        assert json.loads(json.dumps(asdict(found), allow_nan=False)) == {**NOTE, field: value}
        assert found.worker == "1-of-1.0"


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"\xff", b"[]", b"3", b"{}", b"[" * 100_000, b'{"attributes": 1}', b'{"attributes": {"worker": "1-of-1.0"}}'],
)
def test_whatever_is_no_note_is_left_out_and_cleared(store: Store, document: bytes) -> None:
    put(store, "1-of-1.0", document)
    store.heartbeats.write(other := note("1-of-1.1"))
    (store.path / "activity/file").write_text("no folder")
    assert store.heartbeats.read() == [other]
    store.heartbeats.clear()
    assert store.heartbeats.read() == []
    assert not (store.path / "activity").exists()


@pytest.mark.parametrize("worker", ["..", "../..", "/etc", "../features"])
def test_a_note_that_names_another_place_is_left_out(store: Store, worker: str) -> None:
    put(store, "1-of-1.0", json.dumps({"attributes": {**NOTE, "worker": worker}}).encode())
    assert store.heartbeats.read() == []
