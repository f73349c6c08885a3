"""`nullbooth import`: the store that it makes, and those that it leaves alone."""

import json
from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.cli import nullbooth, refused


@pytest.fixture
def done(done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the finished run; the current folder is empty beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return done


@pytest.fixture
def covariances(done: str) -> Path:
    store = Store.open(done, write=True)
    store.write_record("project", None)  # they need no projectors
    result = nullbooth("export", "out", "-s", done, "--only-covariance", "--json")
    return Path(json.loads(result.stdout)["path"])


def test_a_store_that_holds_something_is_left_alone(done: str, covariances: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")}
    refused(nullbooth("import", str(covariances), "-s", done), 4, "has a collection already")
    assert {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")} == before


def test_a_folder_without_any(tmp_path: Path) -> None:
    refused(nullbooth("import", str(tmp_path), "-s", str(tmp_path / "x.zarr")), 2, "has no covariances")
    assert not (tmp_path / "x.zarr").exists()
