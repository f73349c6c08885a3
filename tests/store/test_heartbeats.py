"""The notes of processes in a store: round trips, and what other readers of the store find."""

import json
from pathlib import Path

import pytest
import zarr

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
