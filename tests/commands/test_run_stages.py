"""What commands of stages share: the plan of a dry run, shards, repair, and the answer of the last stage."""

import json
import re
from pathlib import Path

import pytest

from tests.support.cli import nullbooth, refused


def test_dry_run_writes_nothing(small: Path) -> None:
    result = nullbooth("run", "-c", str(small), "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert set(document["stages"]) == {"schedule", "collect", "covariance", "project"}
    assert document["stages"]["collect"]["units_total"] == 2
    assert all(stage["seconds"] is None for stage in document["stages"].values())
    assert not (small.parent / "run.zarr").exists()
    assert not (small.parent / "run.zarr.lock").exists()


@pytest.mark.parametrize("keep", ["features", "moments"])
def test_dry_run_of_what_is_begun_knows_the_time(small: Path, keep: str) -> None:
    keeping = ("--set", f"collect.keep={keep}")
    assert nullbooth("collect", "-c", str(small), *keeping, "--limit", "1").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (small.parent / "run.zarr").rglob("*")}
    result = nullbooth("collect", "-c", str(small), *keeping, "--dry-run", "--json")
    plan = json.loads(result.stdout)["stages"]["collect"]
    assert (plan["units_done"], plan["units_total"]) == (1, 2)
    assert plan["seconds"] > 0
    # The part that moments need was made for the first unit.
    assert plan["bytes_free"] > plan["bytes_needed"]
    assert (plan["bytes_needed"] > 0) == (keep == "features")
    assert (plan["device_bytes_needed"] > 0) == (keep == "moments")
    assert plan["device_bytes_free"] > 0
    table = nullbooth("collect", "-c", str(small), *keeping, "--dry-run").stdout
    assert re.search(r"collect +1 +1 +\d+ (s|min|h)", table)
    assert {path: path.stat().st_mtime_ns for path in (small.parent / "run.zarr").rglob("*")} == before


@pytest.mark.parametrize("shard", ["4/3", "0/3", "3", "a/b"])
def test_a_shard_of_nothing(small: Path, shard: str) -> None:
    refused(nullbooth("collect", "-c", str(small), "--shard", shard), 2, f"{shard} is not a shard", "such as 3/16")


def test_force_would_undo_other_shards(small: Path) -> None:
    refused(nullbooth("collect", "-c", str(small), "--shard", "1/2", "--force"), 2, "the work of the other shards")


def test_nothing_to_repair(small: Path) -> None:
    refused(nullbooth("collect", "-c", str(small), "--repair"), 3, "there is nothing to repair")
