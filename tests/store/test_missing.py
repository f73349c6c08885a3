"""A place without a store: the hint names the stores that the user may have meant, or makes one there."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import StageError
from nullbooth_cli.store import Store, no_store, open_backing, stores_beside


def test_the_stores_beside_it_those_with_a_similar_name_first(tmp_path: Path) -> None:
    for name in ("other.zarr", "words.zarr", "zzz.zarr", "a.zarr"):
        Store.create(tmp_path / name, {})
    (tmp_path / "wordz").mkdir()
    found = [Path(place).name for place in stores_beside(f"{tmp_path}/wrods.zarr")]
    assert found[0] == "words.zarr"
    assert len(found) == 3
    error = no_store(open_backing(tmp_path / "wrods.zarr"))
    assert isinstance(error, StageError)
    assert error.rerun is None  # a command that collects there would begin a run under the mistyped name
    assert error.hint.startswith(f"set store to one beside it: {tmp_path / 'words.zarr'}, ")


def test_a_place_unlike_the_stores_beside_it_is_a_new_one(tmp_path: Path) -> None:
    Store.create(tmp_path / "toy.zarr", {})
    error = no_store(open_backing(tmp_path / "sdxl-held-out"))
    assert error.rerun is not None
    assert (error.rerun.stage, error.rerun.store) == ("collect", str(tmp_path / "sdxl-held-out"))
    assert f"beside it is {tmp_path / 'toy.zarr'}" in error.hint


@pytest.mark.parametrize("place", ["gone/run.zarr", "s3://bucket/runs/a.zarr"])
def test_nothing_is_beside_it(tmp_path: Path, place: str) -> None:
    assert stores_beside(place if "://" in place else str(tmp_path / place)) == []


def test_a_name_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store.create("toy.zarr", {})
    assert stores_beside("toi.zarr") == ["toy.zarr"]
