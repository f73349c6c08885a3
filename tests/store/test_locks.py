"""Locks of a place: the whole store alone, or shards of one count beside each other."""

import os
from pathlib import Path

import pytest

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Backing, locked, locks, open_backing, shard_locked
from nullbooth_cli.store.locks import in_use


@pytest.fixture
def backing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backing:
    monkeypatch.setattr(locks, "PROBE_SECONDS", 0.1)
    return open_backing(tmp_path / "run.zarr")


def test_shards_of_one_count_work_beside_each_other(backing: Backing) -> None:
    with shard_locked(backing, 1, 3), shard_locked(backing, 3, 3), locked(backing, among_shards=True):
        assert sorted(backing.other_locks()) == ["1-of-3", "3-of-3"]


@pytest.mark.parametrize(("number", "count"), [(1, 3), (1, 2), (2, 2)])
def test_the_same_shard_and_shards_of_another_count_exclude_each_other(backing: Backing, number: int, count: int) -> None:
    with (
        shard_locked(backing, 1, 3),
        pytest.raises(StoreError, match=f"in use by process {os.getpid()} on "),
        shard_locked(backing, number, count),
    ):
        pass
    with shard_locked(backing, number, count):
        pass


def test_the_whole_store_is_not_locked_beside_a_shard(backing: Backing) -> None:
    with shard_locked(backing, 1, 3), pytest.raises(StoreError, match="in use by process"), locked(backing):
        pass
    with locked(backing):
        pass


def test_a_holder_without_a_name_is_another_process() -> None:
    assert in_use("run.zarr", "").message == "run.zarr is in use by another process"


def test_a_lock_is_held_until_it_is_given_back(backing: Backing) -> None:
    assert not locks.is_held(backing, "1-of-3.0")
    with backing.lock("1-of-3.0"):
        assert locks.is_held(backing, "1-of-3.0")
    assert not locks.is_held(backing, "1-of-3.0")
