"""`nullbooth import`: the store that it makes, and those that it leaves alone."""

from pathlib import Path

import pytest

from tests.support.cli import nullbooth, refused

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_store_that_holds_something_is_left_alone(done: str, covariances: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")}
    refused(nullbooth("import", str(covariances), "-s", done), 4, "has a collection already")
    assert {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")} == before


def test_a_folder_without_any(tmp_path: Path) -> None:
    refused(nullbooth("import", str(tmp_path), "-s", str(tmp_path / "x.zarr")), 2, "has no covariances")
    assert not (tmp_path / "x.zarr").exists()
