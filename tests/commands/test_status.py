"""`nullbooth status`: its document, its check of a stage, and the damage that it names."""

import json
import re
from pathlib import Path

from tests.support.cli import nullbooth


def test_verify_reads_everything(done: str) -> None:
    result = nullbooth("status", "-s", done, "--verify")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"verified: \d+ pieces read, 0 damaged", result.stdout)
    chunk = next(Path(done, "features").rglob("c.0.0.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    Path(done, "schedule/sigmas/c.0").unlink()
    result = nullbooth("status", "-s", done, "--verify", "--json")
    assert result.exit_code == 4
    verified = json.loads(result.stdout)["verify"]
    assert [damage["stage"] for damage in verified["damaged"]] == ["schedule", "collect"]
    assert "schedule/sigmas chunk c.0 is damaged: it is missing" in verified["damaged"][0]["error"]
    assert f"collect --repair -s {done}" in verified["damaged"][1]["hint"]


def test_status(done: str) -> None:
    document = json.loads(nullbooth("status", "-s", done, "--json").stdout)
    assert (document["schema_version"], document["store"]) == (1, done)
    assert list(document["stages"]) == ["schedule", "collect", "covariance", "project"]
    for stage in document["stages"].values():
        assert set(stage) == {"state", "units_done", "units_total", "bytes", "stale_because"}
        assert stage["state"] == "complete"
        assert stage["bytes"] > 0
        assert stage["units_done"] == stage["units_total"]


def test_status_of_a_stale_run(done: str) -> None:
    stale = json.loads(nullbooth("status", "-s", done, "--set", "collect.seed=9", "--json").stdout)["stages"]
    assert [stage["state"] for stage in stale.values()] == ["complete", "stale", "stale", "stale"]
    assert stale["collect"]["stale_because"] == [{"field": "collect.seed", "old": 0, "new": 9}]


def test_check(small: Path, done: str) -> None:
    assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0
    result = nullbooth("status", "-c", str(small), "--check", "collect")
    assert result.exit_code == 3
    assert re.search("collect in .* is missing", result.stderr)
    assert nullbooth("status", "-c", str(small), "--check", "colect").exit_code == 2
