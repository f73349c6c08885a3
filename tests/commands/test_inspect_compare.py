"""`nullbooth inspect` of two stores."""

import json
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.store import Store
from tests.support.builders import first_half, per_timestep
from tests.support.cli import nullbooth


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The other half of the prompts, another threshold."""
    return first_half(tmp_path_factory.mktemp("other"))[1]


class TestCompare:
    def test_as_a_table(self, finished: Any, other: Store) -> None:
        shown = nullbooth("inspect", "-s", str(finished[1].path), str(other.path), "--layer", "mid_block")
        assert shown.exit_code == 0, shown.stderr
        assert f"A = {finished[1].path}" in shown.stdout
        assert f"B = {other.path}" in shown.stdout
        assert "project.relative_threshold: 0.05 | 0.02" in shown.stdout
        assert "mean overlap" in shown.stdout
        assert "held-out" not in shown.stdout

    def test_scopes_that_differ_are_refused(self, finished: Any, tmp_path: Path) -> None:
        config, store = finished
        per_timestep(config, store, tmp_path)
        shown = nullbooth("inspect", str(store.path), str(tmp_path / "run.zarr"))
        assert shown.exit_code == 2
        assert "scope pooled" in shown.stderr
        again = nullbooth("inspect", str(tmp_path / "run.zarr"), str(tmp_path / "run.zarr"), "--json")
        assert len(json.loads(again.stdout)["sites"]) > len(store.sites)

    def test_unfinished_is_refused(self, finished: Any, tmp_path: Path) -> None:
        shown = nullbooth("inspect", str(finished[1].path), str(tmp_path / "none.zarr"))
        assert shown.exit_code in (2, 3)
        assert "error: " in shown.stderr
