"""A folder that is no store, a foreign store or one of another format version is refused, and nothing in it changes."""

import json
from pathlib import Path

import pytest
import zarr

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Store
from nullbooth_cli.store.format import FORMAT_VERSION, PACKAGES


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at") as caught:
        Store.open(tmp_path / "nothing")
    assert caught.value.rerun is not None
    assert caught.value.rerun.stage == "collect"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(StoreError, match="is not a Zarr v3 group"):
        Store.open(tmp_path / "folder")
    with pytest.raises(StoreError, match="is not a nullbooth store"):
        Store.create(tmp_path / "folder", {})
    assert (tmp_path / "folder" / "file").read_text() == "mine"


def test_a_store_of_another_project(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "z", attributes={"format": "ome"})
    with pytest.raises(StoreError, match="not a nullbooth store"):
        Store.open(tmp_path / "z")


def test_a_newer_format(store: Store) -> None:
    path = store.path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["format_version"] = FORMAT_VERSION + 1
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"has store format {FORMAT_VERSION + 1}; this nullbooth reads {FORMAT_VERSION}"):
        Store.open(store.path)


def test_an_older_format(store: Store) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 1'))
    with pytest.raises(StoreError, match="store format 1, of an earlier nullbooth"):
        Store.open(store.path)


def test_a_new_store_names_the_packages_that_made_it(store: Store) -> None:
    assert set(store.packages) == set(PACKAGES)
    assert store.packages["zarr"] == zarr.__version__
