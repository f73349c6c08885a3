"""A folder that is no store, a foreign store or one of another format version is refused, and nothing in it changes."""

import shutil
from pathlib import Path

import pytest
import zarr

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import StageError, StoreError
from nullbooth_cli.store import Store
from nullbooth_cli.store.format import FORMAT_VERSION, PACKAGES
from tests.support.stores import as_format


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no store at"):
        Store.open(tmp_path / "nothing")
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


@pytest.mark.parametrize(
    ("version", "message"),
    [(99, f"has store format 99; this nullbooth reads {FORMAT_VERSION}"), (4, "store format 4, of an earlier nullbooth")],
)
def test_another_format(store: Store, version: int, message: str) -> None:
    as_format(store.path, version)
    with pytest.raises(StoreError, match=message):
        Store.open(store.path)


@pytest.mark.parametrize("version", [4, 6])
def test_an_edited_number_of_the_format_is_damage(store: Store, version: int) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION}', f'"format_version": {version}'))
    with pytest.raises(StoreError, match=f"zarr.json is damaged: its format_version was {FORMAT_VERSION}, and is {version}"):
        Store.open(store.path)


def test_every_changed_byte_of_the_metadata_is_damage_of_that_file(store: Store) -> None:
    path = store.path / "zarr.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 + place % 255)]) + data[place + 1 :])
        if {data[place], path.read_bytes()[place]} <= set(b" \n\r\t"):
            assert Store.open(store.path).config == store.config
            continue
        with pytest.raises(StoreError, match=r"run\.zarr: zarr\.json is damaged: ") as caught:
            Store.open(store.path)
        assert "put this file back" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"attributes": []}'])
def test_metadata_that_are_no_document_are_damage(store: Store, text: str) -> None:
    (store.path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"zarr.json is damaged|is a Zarr group, but not a nullbooth store") as caught:
        Store.open(store.path)
    assert ("damaged" in caught.value.message) == (text != '{"attributes": []}')


def test_a_store_that_lost_its_metadata_is_damaged_not_foreign(store: Store) -> None:
    (store.path / "zarr.json").unlink()
    for attempt in (Store.open, Store.open_if_there, lambda place: Store.open_or_create(place, {})):
        with pytest.raises(StoreError, match=r"zarr\.json is damaged: it is missing"):
            attempt(store.path)


def test_metadata_or_held_out_prompts_of_another_store_are_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other.zarr", {})
    store.inside_or_create(HELDOUT, {})
    other.inside_or_create(HELDOUT, {})
    shutil.copyfile(other.path / "heldout/zarr.json", store.path / "heldout/zarr.json")
    with pytest.raises(StoreError, match=r"heldout: zarr\.json is damaged: it belongs to another run"):
        Store.open(store.path).heldout()
    shutil.copyfile(other.path / "zarr.json", store.path / "zarr.json")
    with pytest.raises(StoreError, match=r"progress/collect/zarr\.json is damaged: it was edited, or belongs to another place"):
        Store.open(store.path).progress.cells("collect")


def test_a_new_store_names_the_packages_that_made_it(store: Store) -> None:
    assert set(store.packages) == set(PACKAGES)
    assert store.packages["zarr"] == zarr.__version__


def test_a_zip_file_is_said_to_be_one(store: Store, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", store.path)
    for refused in (lambda: Store.open(packed), lambda: Store.create(packed, {}), lambda: Store.open_if_there(packed)):
        with pytest.raises(StoreError, match=r"packed\.zip is a zip file, and a store is a folder or a URL"):
            refused()


def test_zarr_of_format_2_is_said_to_be_that(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    for refused in (lambda: Store.open(tmp_path / "old.zarr"), lambda: Store.create(tmp_path / "old.zarr", {})):
        with pytest.raises(StoreError, match=r"old\.zarr has Zarr format 2; this nullbooth reads format 3"):
            refused()
