"""`status --watch` beside a run: its reports are true, it writes nothing, and it survives killed processes and damage."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import MANY, MID, execute, small_config
from tests.support.cli import nullbooth, refused, saved, start_nullbooth
from tests.support.notes import files, note
from tests.support.zygote import Twist, Worker, launch, stopped


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """Two of eight units are collected."""
    config = small_config(tmp_path_factory.mktemp("started") / "run.zarr", **MID, heldout_prompts=["a black star"])
    return config, execute(config, "schedule", "collect", limit=2)


def watch(store: str, *more: str) -> subprocess.Popen[str]:
    arguments = ("status", "-s", store, "--watch", "--interval", "0.1", *more)
    return start_nullbooth(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_workers_one_killed(tmp_path: Path) -> None:
    """From the first unit until all is complete, over a kill and a second run; counts never fall back."""
    config = small_config(tmp_path / "run.zarr", **MID, original_knowledge_prompts=MANY[:16])
    arguments = saved(config, tmp_path / "c.yaml")
    twists = {rank: Twist(slow=0.3, beat_seconds=0.05) for rank in range(2)}
    execute(config, "schedule")
    with watch(config.store, "--json") as watcher:
        with stopped(launch(["run", *arguments], tmp_path / "log", 2, twists)) as both:
            while min(len(worker.begun) for worker in both) < 3:
                assert both[0].is_alive(), both[0].err
                time.sleep(0.02)
            both[1].kill()
            assert both[0].finish() == 3
        twist = Twist(slow=0.05, beat_seconds=0.05)
        with stopped([Worker(["run", *arguments], tmp_path / "again", twist=twist)]) as (again,):
            assert again.finish() == 0, again.err
        out, err = watcher.communicate()
    assert (watcher.returncode, err) == (0, "every stage is complete\n")
    found = documents(out)
    assert found[-1]["stages"]["project"]["state"] == "complete"
    assert found[-1]["workers"] == []
    counts = [document["stages"]["collect"]["units_done"] for document in found]
    assert counts == sorted(counts)
    assert counts[-1] == 16
    together = [document for document in found if len(document["workers"]) == 2]
    assert {worker["worker"] for worker in together[0]["workers"]} == {"1-of-1.0", "1-of-1.1"}
    paces = [document["stages"]["collect"]["units_per_minute"] for document in found]
    assert any(pace and pace < 60 * 2 / 0.3 for pace in paces), "at most two units in 0.3 s"
    assert all(pace is None for document, pace in zip(found, paces, strict=True) if not document["workers"])
    assert Store.open(config.store).heartbeats.read() == []


def test_it_changes_nothing(started: tuple[Config, Store], tmp_path: Path) -> None:
    """Neither files nor the lock: with a killed worker's note there, seen through Ctrl-C."""
    shutil.copytree(started[1].path, tmp_path / "run.zarr")
    place = tmp_path / "run.zarr"
    Store.open(place, write=True).heartbeats.write(note("1-of-1.1", time=time.time() - 50))
    before = files(place)
    with watch(str(place)) as watcher:
        assert watcher.stdout is not None
        assert "collect partial 2/8, no process is working on units, process 1 silent for" in watcher.stdout.readline()
        time.sleep(0.5)
        watcher.send_signal(signal.SIGINT)
        out, err = watcher.communicate()
    assert (watcher.returncode, out, err) == (0, "", "stopped watching; the run continues\n")
    assert files(place) == before


def test_it_ends_where_check_says(started: tuple[Config, Store]) -> None:
    result = nullbooth("status", "-s", started[1].url, "--watch", "--check", "schedule")
    assert (result.exit_code, result.stderr) == (0, f"schedule is complete\nnext: nullbooth collect -s {started[1].url}\n")
    assert "collect partial 2/8" in result.stdout


def test_refusals(started: tuple[Config, Store], tmp_path: Path) -> None:
    config = saved(small_config(tmp_path / "none.zarr"), tmp_path / "c.yaml")
    refused(nullbooth("status", "--watch", *config), 3, "nothing was collected yet", "nullbooth collect")
    refused(nullbooth("status", "--watch", "--verify", "-s", started[1].url), 2, "--verify", "ask for one")
    refused(nullbooth("status", "--watch", "--interval", "0", "-s", started[1].url), 2, "0.1")


def test_damage_is_an_error_after_some_looks(started: tuple[Config, Store], tmp_path: Path) -> None:
    shutil.copytree(started[1].path, tmp_path / "run.zarr")
    next((tmp_path / "run.zarr/progress/collect").glob("c.1")).write_bytes(b"no")
    result = nullbooth("status", "-s", str(tmp_path / "run.zarr"), "--watch", "--interval", "0.1")
    refused(result, 4, "progress/collect chunk c.1 is damaged")
