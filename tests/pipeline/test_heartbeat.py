"""Heartbeats appear while a process works, and are gone afterwards, whatever ends the work."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.pipeline import heartbeat, open_run
from nullbooth_cli.pipeline.heartbeat import beating
from nullbooth_cli.pipeline.workers import Shard, Workers
from nullbooth_cli.progress import Event, Progress
from nullbooth_cli.store import Heartbeat, Store
from tests.support.builders import MID, execute, small_config
from tests.support.cli import nullbooth, saved
from tests.support.notes import files, note


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run.zarr", {})


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)


def wait_for(store: Store, units: int) -> Heartbeat:
    while not (found := store.heartbeats.read()) or found[0].units < units:
        time.sleep(0.01)
    return found[0]


@pytest.mark.usefixtures("often")
def test_a_note_appears_and_grows_and_is_removed(store: Store) -> None:
    with beating(store, Workers(Shard(3, 16)), "collect") as finished_unit:
        before = wait_for(store, 0)
        assert (before.worker, before.stage, before.pid) == ("3-of-16.0", "collect", os.getpid())
        assert (before.units, before.last) == (0, None)
        finished_unit()
        finished_unit()
        later = wait_for(store, 2)
        assert later.last is not None
        assert later.began == before.began <= later.last <= later.time
        assert before.time < later.time
    assert store.heartbeats.read() == []


def test_short_work_leaves_no_trace(store: Store) -> None:
    before = files(store.path)
    with beating(store, Workers(), "collect") as finished_unit:
        finished_unit()
    assert files(store.path) == before


@pytest.mark.usefixtures("often")
def test_an_error_removes_the_note_too(store: Store) -> None:
    def work() -> None:
        with beating(store, Workers(), "collect"):
            wait_for(store, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert store.heartbeats.read() == []


@pytest.mark.usefixtures("often")
def test_the_note_is_removed_before_the_lock_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while a bar is drawn, not while a unit runs."""
    arguments = saved(small_config(tmp_path / "run.zarr", **MID), tmp_path / "c.yaml")
    seen: list[list[Heartbeat]] = []
    locked_store = open_run._locked_store

    def follow(_: Any, events: Iterator[Event]) -> None:
        next(event for event in events if isinstance(event, Progress) and event.stage == "collect")
        wait_for(Store.open(tmp_path / "run.zarr"), 1)
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def watched(*of_it: Any) -> Iterator[None]:
        with locked_store(*of_it):
            try:
                yield
            finally:
                seen.append(Store.open(tmp_path / "run.zarr").heartbeats.read())

    monkeypatch.setattr(Terminal, "follow", follow)
    monkeypatch.setattr(open_run, "_locked_store", watched)
    assert nullbooth("collect", *arguments).exit_code == 130
    assert seen == [[]]


def test_the_next_run_removes_the_notes_of_killed_processes(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **MID)
    store = execute(config, "schedule", "collect", limit=1)
    store.heartbeats.write(note("1-of-1.3"))
    execute(config, "collect")
    assert store.heartbeats.read() == []
