"""`nullbooth project --explore`: a ladder of thresholds, and nothing written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.cli import nullbooth, refused


class TestExplore:
    def test_a_ladder_is_shown_and_nothing_written(self, done: str, tmp_path: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")}
        picture = tmp_path / "pictures/ladder.png"
        result = nullbooth("project", "-s", done, "--explore", "--json", "--plot", str(picture))
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")} == before
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert document["heldout"] is False
        values = [rung["value"] for rung in document["ladder"]]
        assert values == sorted(values)
        assert 0.05 in values
        inspected = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)
        now = document["ladder"][values.index(0.05)]
        assert now["null_dim"] == inspected["totals"]["null_dim"]
        assert [s["null_dim"] for s in now["sites"]] == [s["null_dim"] for s in inspected["sites"]]
        assert [s["leakage"] for s in now["sites"]] == pytest.approx([s["leakage"] for s in inspected["sites"]])
        for key in ("null_dim", "largest_leakage"):
            of_rungs = [rung[key] for rung in document["ladder"]]
            assert of_rungs == sorted(of_rungs)

    def test_before_project_it_decomposes_in_memory(self, done: str) -> None:
        stored = json.loads(nullbooth("project", "-s", done, "--explore", "--json").stdout)
        shutil.rmtree(f"{done}/projectors")
        store = Store.open(done, write=True)
        store.write_record("project", None)
        store.write_record("decomposition", None)
        fresh = json.loads(nullbooth("project", "-s", done, "--explore", "--json").stdout)
        assert not Path(done, "projectors").exists()
        for mine, theirs in zip(fresh["ladder"], stored["ladder"], strict=True):
            assert mine["largest_leakage"] == pytest.approx(theirs["largest_leakage"], abs=1e-7)
            if not theirs["below_noise"]:
                assert mine["null_dim"] == theirs["null_dim"]

    @pytest.mark.parametrize(
        "rule", ["nullspace_threshold=0.1", "threshold_percent=33", "energy=0.97", "target_leakage=0.03", "null_dim=3"]
    )
    def test_the_ladder_is_of_the_rule_in_force(self, done: str, rule: str) -> None:
        name, value = rule.split("=")
        shown = nullbooth(
            "project", "-s", done, "--set", "project.relative_threshold=null", "--set", f"project.{rule}", "--explore"
        )
        assert shown.exit_code == 0, shown.stderr
        assert name in shown.stdout
        in_force = re.search(r"(\S+) \* ", shown.stdout)
        assert in_force
        assert float(in_force[1]) == float(value)
        assert "no held-out prompts" in shown.stdout

    def test_what_cannot_be_drawn(self, done: str) -> None:
        refused(nullbooth("project", "-s", done, "--explore", "--plot", "x.gif"), 2, "cannot draw x.gif", ".png")
        refused(nullbooth("project", "-s", done, "--plot", "x.png"), 2, "--explore")
        refused(nullbooth("project", "-s", done, "--sites"), 2, "--sites needs --explore", "add --explore")

    def test_sites_are_shown_below_the_ladder_on_demand(self, done: str) -> None:
        short, long = (nullbooth("project", "-s", done, "--explore", *flag) for flag in ((), ("--sites",)))
        assert "mid_block" not in short.stdout
        assert long.stdout.startswith(short.stdout), "the ladder comes first"
        store = Store.open(done)
        by_site = long.stdout[len(short.stdout) :]
        assert all(by_site.count(f"{site.layer} ") > 1 for site in store.sites)
        assert short.stderr == f"next: nullbooth project -s {done} --set project.relative_threshold=VALUE --force\n"
