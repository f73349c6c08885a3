"""Stages: how each is started, resumed or refused, and that stopping at any moment changes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nullbooth_cli.errors import ConfigError, Rerun, ResourceError, StageError
from nullbooth_cli.pipeline import stages
from nullbooth_cli.progress import Note, Progress
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import execute, small_config, states_of
from tests.support.cli import start
from tests.support.stages import TINY, changed, events


def test_collect_writes_the_schedule_first(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    execute(config, "collect")
    assert states_of(config) == {"schedule": "complete", "collect": "complete", "covariance": "missing", "project": "missing"}


def test_a_range_without_timesteps_is_refused_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "x.zarr", project__timesteps=[5000, 6000])
    monkeypatch.setitem(stages._RUNNERS, "collect", lambda run: pytest.fail("collect has begun"))
    with pytest.raises(ConfigError, match=r"no timestep lies in project.timesteps \[5000, 6000\]"):
        execute(config, "schedule", "collect")


@pytest.mark.parametrize("stage", STAGES)
def test_a_complete_stage_says_so_and_does_nothing(tiny: Any, stage: str) -> None:
    config, store = tiny
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    said = events(config, store, stage)
    assert len(said) == 1
    assert isinstance(said[0], Note)
    assert f"{stage} is complete" in said[0].text
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_a_stale_stage_is_refused_and_loses_nothing(tiny: Any) -> None:
    config, store = tiny
    other = changed(config, collect__guidance_scale=5.0)
    with pytest.raises(StageError, match=r"collect\.guidance_scale: 4\.0 -> 5\.0") as caught:
        events(other, store, "collect")
    assert caught.value.rerun == Rerun("collect", force=True, otherwise=caught.value.rerun.otherwise)
    assert "to replace its" in caught.value.hint
    with pytest.raises(StageError, match=r"collect in .* is stale"):
        events(other, store, "covariance")
    assert set(states_of(config).values()) == {"complete"}
    events(other, store, "collect", force=True)
    assert states_of(other) == {"schedule": "complete", "collect": "complete", "covariance": "stale", "project": "stale"}


def test_a_stage_that_did_no_unit_starts_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "schedule")
    with monkeypatch.context() as failing:
        failing.setattr("nullbooth_cli.collect.units.collect_units", lambda *_, **__: pytest.fail("before the first unit"))
        with pytest.raises(pytest.fail.Exception):
            events(config, store, "collect")
    other = changed(config, collect__guidance_scale=5.0)
    assert states_of(other)["collect"] == "stale"
    events(other, store, "collect", limit=1)
    assert states_of(other)["collect"] == "partial"
    with pytest.raises(StageError, match=r"collect in .* was made with other settings"):
        events(config, store, "collect")


@pytest.mark.parametrize(("stage", "needs"), [("covariance", "schedule"), ("project", "schedule")])
def test_a_stage_out_of_order(tmp_path: Path, stage: str, needs: str) -> None:
    config = small_config(tmp_path / "run.zarr")
    with pytest.raises(StageError, match=f"{needs} in .* is missing") as caught:
        execute(config, stage)
    assert caught.value.rerun == Rerun(needs, store=str(config.store))


def test_limit_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    assert states_of(config)["collect"] == "partial"
    with pytest.raises(StageError, match=r"collect in .* is partial: 1 of 4 units"):
        events(config, store, "covariance")
    rest = [event for event in events(config, store, "collect") if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in rest] == [(2, 4), (3, 4), (4, 4)]


def test_no_room_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    execute(config, "schedule")
    monkeypatch.setattr(LocalBacking, "free_nbytes", lambda self: 1000)
    with pytest.raises(ResourceError, match="1,000 are free"):
        execute(config, "collect")
    assert states_of(config)["collect"] == "missing"


class TestKilled:
    """Processes that are stopped: whatever the moment, the same command finishes and the result is the uninterrupted one."""

    def command(self, tmp_path: Path) -> tuple[list[str], Config]:
        config = small_config(tmp_path / "killed.zarr", **TINY)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        return [sys.executable, "-m", "nullbooth_cli", "run", "-c", str(tmp_path / "c.yaml")], config

    def test_ctrl_c_exits_130_and_keeps_finished_units(self, tmp_path: Path, tiny: Any) -> None:
        command, config = self.command(tmp_path)
        process = start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=1)
        assert process.stderr is not None
        while not process.stderr.readline().startswith("collect 1/"):
            pass
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
        assert "interrupted: run the same command again to resume" in rest
        assert "Traceback" not in rest
        process.stderr.close()
        assert Store.open(config.store).progress.done("collect")[0]
        self.finish_and_compare(command, config, tiny)

    def finish_and_compare(self, command: list[str], config: Config, tiny: Any) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=False)
        assert done.returncode == 0, done.stderr
        _, expected = tiny
        store = Store.open(config.store)
        assert set(states_of(config).values()) == {"complete"}
        assert not list(store.path.rglob("*.partial"))
        assert store.sites == expected.sites
        for site in store.sites:
            for t in range(1 if site.timestep_free else 4):
                for found, wanted in zip(store.moments.read_one(site, t), expected.moments.read_one(site, t), strict=True):
                    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
            assert store.projectors.read_cut(site, 0)[0] == expected.projectors.read_cut(site, 0)[0]
