"""`nullbooth project`: its answer, and what it refuses."""

import json
from pathlib import Path

from tests.support.cli import nullbooth, refused


def test_outputs_are_not_projected(small: Path) -> None:
    result = nullbooth("run", "-c", str(small), "--set", "collect.side=output")
    refused(result, 2, "features are outputs", "set collect.side to input")
    assert not (small.parent / "run.zarr").exists(), "before anything is recorded"


def test_its_answer_is_the_inspection_of_the_new_projectors(done: str) -> None:
    rule = ("--set", "project.relative_threshold=null", "--set", "project.null_dim=7")
    shown = nullbooth("project", "-s", done, *rule, "--force", "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert {site["null_dim"] for site in document["sites"]} == {7}
    assert document["totals"]["null_dim"] == 7 * document["totals"]["sites"] == 7 * 21
    assert document == json.loads(nullbooth("inspect", "-s", done, "--json").stdout)


def test_the_stored_rule_stays_when_another_one_is_asked_for_without_force(done: str) -> None:
    refused(nullbooth("project", "-s", done, "--set", "project.relative_threshold=0.1"), 3, "0.05 -> 0.1", "--force")
