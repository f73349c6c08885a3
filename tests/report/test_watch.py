"""`status --watch` beside a run: what it says is true, it writes nothing, and it outlives killed workers and torn looks."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.commands import run_stages
from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.status_watch import _line
from nullbooth_cli.errors import StoreError
from nullbooth_cli.pipeline import heartbeat
from nullbooth_cli.pipeline.heartbeat import beating
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.pipeline.workers import Shard, Workers
from nullbooth_cli.progress import FEWEST_MARKS, WINDOW_SECONDS, Event, Pace, Progress
from nullbooth_cli.report import watch as watch_module
from nullbooth_cli.report.watch import SILENT_SECONDS, Ages, poll, watch_document
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Heartbeat, Store
from tests.support.builders import MANY, MID, execute, prompts_of, small_config
from tests.support.cli import nullbooth, refused, saved, start_nullbooth
from tests.support.zygote import Twist, Worker, launch, stopped


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder beside and below a store, with its size and the time of its last change."""
    paths = [store.parent, *store.parent.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


class TestPace:
    @given(st.floats(0.2, 30.0), st.integers(1, 200))
    def test_a_steady_pace_is_found(self, seconds: float, units: int) -> None:
        pace = Pace(100.0)
        for unit in range(1, units + 1):
            pace.mark(100.0 + unit * seconds, unit)
        assert pace.seconds_per_unit == pytest.approx(seconds)
        assert pace.seconds_left(7) == pytest.approx(7 * seconds)

    def test_nothing_is_known_before_the_first_unit(self) -> None:
        assert Pace(0.0, 5).seconds_per_unit is None
        assert Pace(0.0, 5).seconds_left(3) is None

    def test_only_units_of_late_count(self) -> None:
        pace, now = Pace(0.0), 0.0
        for unit in range(100):
            now += 10.0 if unit < 20 else 1.0
            pace.mark(now, unit + 1)
        assert now - 100 > WINDOW_SECONDS
        assert pace.seconds_per_unit == pytest.approx(1.0)

    @given(st.integers(2, 40), st.floats(61.0, 600.0))
    def test_units_that_are_made_durable_together_have_the_pace_of_their_work(self, burst: int, seconds: float) -> None:
        """Sums are written every so often, and then many units are reported at once."""
        pace = Pace(0.0)
        for checkpoint in range(1, FEWEST_MARKS + 5):
            for i in range(burst):
                pace.mark(checkpoint * seconds + i * 1e-4, (checkpoint - 1) * burst + i + 1)
        assert pace.seconds_per_unit == pytest.approx(seconds / burst, rel=1e-3)


class TestPresence:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store.create(tmp_path / "run.zarr", {})

    def wait_for(self, store: Store, units: int) -> Heartbeat:
        deadline = time.monotonic() + 20
        while not (found := store.heartbeats.read()) or found[0].units < units:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found[0]

    def test_signs_come_and_go(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
        with beating(store, Workers(Shard(3, 16)), "collect") as at_work:
            began = self.wait_for(store, 0)
            assert (began.worker, began.stage, began.pid) == ("3-of-16.0", "collect", os.getpid())
            assert (began.units, began.last, began.seconds_per_unit) == (0, None, None)
            at_work.finished()
            time.sleep(0.2)
            at_work.finished()
            later = self.wait_for(store, 2)
            assert later.began == began.began < later.last < later.time  # type: ignore[operator]  # is set
            assert later.seconds_per_unit == pytest.approx(0.1, rel=0.9)
        assert store.heartbeats.read() == []

    def test_short_work_leaves_no_trace(self, store: Store) -> None:
        before = files(store.path)
        with beating(store, Workers(), "collect") as at_work:
            at_work.finished()
        assert files(store.path) == before

    def test_an_error_takes_the_signs_away_too(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)

        def work() -> None:
            with beating(store, Workers(), "collect"):
                self.wait_for(store, 0)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work()
        assert store.heartbeats.read() == []

    def test_they_are_gone_before_the_store_is_let_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C comes while a bar is drawn, not while a unit runs."""
        monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
        arguments = saved(small_config(tmp_path / "run.zarr", **MID), tmp_path / "c.yaml")
        seen: list[list[Heartbeat]] = []
        held = run_stages._locked_store

        def follow(_: Any, events: Iterator[Event]) -> None:
            next(event for event in events if isinstance(event, Progress) and event.stage == "collect")
            self.wait_for(Store.open(tmp_path / "run.zarr"), 1)
            raise KeyboardInterrupt

        @contextlib.contextmanager
        def watched(*of_it: Any) -> Iterator[None]:
            with held(*of_it):
                try:
                    yield
                finally:
                    seen.append(Store.open(tmp_path / "run.zarr").heartbeats.read())

        monkeypatch.setattr(Terminal, "follow", follow)
        monkeypatch.setattr(run_stages, "_locked_store", watched)
        assert nullbooth("collect", *arguments).exit_code == 130
        assert seen == [[]]

    def test_other_readers_find_a_group(self, store: Store) -> None:
        """Zarr warns of objects that it does not know, and warnings are errors here."""
        import zarr

        store.heartbeats.write(Heartbeat("1-of-1.0", "collect", "here", 1, 0.0))
        store.heartbeats.write(Heartbeat("1-of-1.1", "collect", "there", 2, 0.0, units=3))
        group = zarr.open_group(store.path, mode="r")
        assert dict(group["activity/1-of-1.1"].attrs)["units"] == 3
        assert len(list(group.members(max_depth=None))) == 3
        assert [note.host for note in Store.open(store.path).heartbeats.read()] == ["here", "there"]

    def test_the_next_run_forgets_the_killed(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", **MID)
        store = execute(config, "schedule", "collect", limit=1)
        store.heartbeats.write(Heartbeat("1-of-1.3", "collect", "here", 1, 0.0))
        execute(config, "collect")
        assert store.heartbeats.read() == []


def note(worker: str = "1-of-1.0", **changes: Any) -> Heartbeat:
    now = time.time()
    values = {"stage": "collect", "host": "here", "pid": 7, "began": now - 60, "units": 3, "last": now - 2, "time": now - 1}
    return Heartbeat(worker, **{**values, "seconds_per_unit": 4.0, **changes})


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """Two of eight units are collected."""
    config = small_config(tmp_path_factory.mktemp("begun") / "run.zarr", **MID, heldout_prompts=["a black star"])
    return config, execute(config, "schedule", "collect", limit=2)


class TestDocument:
    def document(self, begun: tuple[Config, Store], *notes: tuple[str, Heartbeat], ages: Ages | None = None) -> dict[str, Any]:
        config, store = begun
        states = stage_states(config, prompts_of(config), store)
        return watch_document(store.url, states, list(notes), ages or Ages())

    def test_paces_add_up(self, begun: tuple[Config, Store]) -> None:
        row = self.document(begun, ("", note()), ("", note("1-of-1.1", seconds_per_unit=12.0)))["stages"]["collect"]
        assert (row["state"], row["units_done"], row["units_total"]) == ("partial", 2, 8)
        assert row["units_per_minute"] == pytest.approx(15 + 5)
        assert row["seconds_left"] == pytest.approx(6 / 20 * 60)
        assert row["heldout"]["units_per_minute"] is None

    def test_the_heldout_prompts_have_a_pace_of_their_own(self, begun: tuple[Config, Store]) -> None:
        found = self.document(begun, ("heldout", note()))
        assert found["stages"]["collect"]["units_per_minute"] is None
        assert found["stages"]["collect"]["heldout"]["units_per_minute"] == pytest.approx(15)
        assert found["workers"][0]["heldout"] is True

    def test_a_silent_worker_does_not_count(self, begun: tuple[Config, Store]) -> None:
        found = self.document(begun, ("", note()), ("", note("1-of-1.1", time=time.time() - 100)))
        assert found["stages"]["collect"]["units_per_minute"] == pytest.approx(15)
        assert [worker["silent_seconds"] for worker in found["workers"]] == [None, pytest.approx(100, abs=1)]
        assert re.search(r"partial 2/8, 15 units/min, 24 s left, 1 process, process 1 silent for 2 min$", _line(found))

    def test_whoever_worked_on_what_is_done_is_not_shown(self, begun: tuple[Config, Store]) -> None:
        assert self.document(begun, ("", note(stage="schedule")))["workers"] == []

    def test_clocks_may_differ(self) -> None:
        """The other machine's clock is an hour behind: it is alive once it is seen to give a sign."""
        ages, behind = Ages(), time.time() - 3600
        assert ages.age("", note(time=behind), now=time.time(), clock=10.0) == pytest.approx(3600, abs=1)
        assert ages.age("", note(time=behind + 3), now=time.time(), clock=13.0) == 0.0
        assert ages.age("", note(time=behind + 3), now=time.time(), clock=20.0) == 7.0

    def test_a_shard_has_its_number(self, begun: tuple[Config, Store]) -> None:
        found = self.document(begun, ("", note("3-of-16.0", time=time.time() - SILENT_SECONDS - 5)))
        assert "process 3/16.0 silent for 20 s" in _line(found)
        assert "no process is working on units" in _line(found)


class TestLooks:
    def test_what_is_wrong_for_a_moment_is_looked_at_again(self) -> None:
        partial, done = ({"stages": {"collect": {"state": state}}} for state in ("partial", "complete"))
        found: Iterator[Any] = iter([StoreError("torn", ""), KeyError("layout"), partial, done])

        def look() -> dict[str, Any]:
            if isinstance(document := next(found), Exception):
                raise document
            return document

        assert [document["stages"]["collect"]["state"] for document in poll(look, None, 0.0)] == ["partial", "complete"]

    def test_what_stays_wrong_is_an_error(self) -> None:
        times = itertools.count()

        def look() -> dict[str, Any]:
            next(times)
            raise StoreError("a chunk is damaged", "")

        with pytest.raises(StoreError, match="a chunk is damaged"):
            list(poll(look, None, 0.0))
        assert next(times) == watch_module.PATIENCE

    def test_maps_are_waited_for(self) -> None:
        rows = [{"state": "complete", "attention": {"state": state}} for state in ("partial", "complete")]
        found = iter([{"stages": {"collect": row}} for row in rows])
        assert len(list(poll(lambda: next(found), "collect", 0.0))) == 2


class TestBesideARun:
    def watch(self, store: str, *more: str) -> subprocess.Popen[str]:
        arguments = ("status", "-s", store, "--watch", "--interval", "0.1", *more)
        return start_nullbooth(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_two_workers_one_killed(self, tmp_path: Path) -> None:
        """From the first unit until all is complete, over a kill and a second run; counts never fall back."""
        config = small_config(tmp_path / "run.zarr", **MID, original_knowledge_prompts=MANY[:16])
        arguments = saved(config, tmp_path / "c.yaml")
        twists = {rank: Twist(slow=0.3, beat_seconds=0.05) for rank in range(2)}
        execute(config, "schedule")
        with self.watch(config.store, "--json") as watcher:
            with stopped(launch(["run", *arguments], tmp_path / "log", 2, twists)) as both:
                while min(len(worker.begun) for worker in both) < 3:
                    assert both[0].is_alive(), both[0].err
                    time.sleep(0.02)
                both[1].kill()
                assert both[0].finish() == 3
            twist = Twist(slow=0.05, beat_seconds=0.05)
            with stopped([Worker(["run", *arguments], tmp_path / "again", twist=twist)]) as (again,):
                assert again.finish() == 0, again.err
            out, err = watcher.communicate(timeout=60)
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
        assert any(pace and 60 < pace < 60 * 2 / 0.3 for pace in paces), "at most two units in 0.3 s"
        assert all(pace is None for document, pace in zip(found, paces, strict=True) if not document["workers"])
        assert Store.open(config.store).heartbeats.read() == []

    def test_it_changes_nothing(self, begun: tuple[Config, Store], tmp_path: Path) -> None:
        """Neither files nor the lock: with a killed worker's note there, seen through Ctrl-C."""
        shutil.copytree(begun[1].path, tmp_path / "run.zarr")
        place = tmp_path / "run.zarr"
        Store.open(place, write=True).heartbeats.write(note("1-of-1.1", time=time.time() - 50))
        before = files(place)
        with self.watch(str(place)) as watcher:
            assert watcher.stdout is not None
            assert "collect partial 2/8, no process is working on units, process 1 silent for" in watcher.stdout.readline()
            time.sleep(0.5)
            watcher.send_signal(signal.SIGINT)
            out, err = watcher.communicate(timeout=20)
        assert (watcher.returncode, out, err) == (0, "", "stopped watching; what runs goes on\n")
        assert files(place) == before

    def test_it_ends_where_check_says(self, begun: tuple[Config, Store]) -> None:
        result = nullbooth("status", "-s", begun[1].url, "--watch", "--check", "schedule")
        assert (result.exit_code, result.stderr) == (0, "schedule is complete\n")
        assert "collect partial 2/8" in result.stdout

    def test_refusals(self, begun: tuple[Config, Store], tmp_path: Path) -> None:
        config = saved(small_config(tmp_path / "none.zarr"), tmp_path / "c.yaml")
        refused(nullbooth("status", "--watch", *config), 3, "nothing was collected yet", "nullbooth collect")
        refused(nullbooth("status", "--watch", "--verify", "-s", begun[1].url), 2, "--verify", "ask for one")
        refused(nullbooth("status", "--watch", "--interval", "0", "-s", begun[1].url), 2, "0.1")

    def test_damage_is_an_error_after_some_looks(self, begun: tuple[Config, Store], tmp_path: Path) -> None:
        shutil.copytree(begun[1].path, tmp_path / "run.zarr")
        next((tmp_path / "run.zarr/progress/collect").glob("c.1")).write_bytes(b"no")
        result = nullbooth("status", "-s", str(tmp_path / "run.zarr"), "--watch", "--interval", "0.1")
        refused(result, 4, "progress/collect chunk c.1 is damaged")
