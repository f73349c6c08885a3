"""Leases on a real S3 server: one holder at a time, whoever is killed, stopped or cut off, and whatever its clock says."""

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store import lease, shard_locked
from nullbooth_cli.store.lease import LEASE_SECONDS, LEASES, Sign, machine
from nullbooth_cli.store.object_store import LeasedObjectStore
from tests.support.bucket import BUCKET, Place


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)


@given(st.text(), st.text(), st.integers(0, 2**31), st.floats(0, 1e10))
def test_a_sign_comes_back_from_json(text: str, place: str, pid: int, seconds: float) -> None:
    sign = Sign(nonce="n", text=text, machine=place, pid=pid, time=seconds)
    assert Sign.from_json(sign.as_json()) == sign


@pytest.mark.parametrize(("age", "dead"), [(0.0, False), (LEASE_SECONDS - 1, False), (LEASE_SECONDS + 1, True)])
def test_a_sign_of_another_machine_is_dead_when_it_is_too_old(age: float, dead: bool) -> None:
    assert Sign(nonce="n", text="", machine="elsewhere", pid=7, time=time.time() - age).is_dead() == dead


def test_another_machines_lease_counts_until_it_is_too_old(place: Place, quick: None) -> None:
    place.bucket.lease(place, age=LEASE_SECONDS / 2)
    with pytest.raises(StoreError, match="in use by process 7 on elsewhere"), place.backing().lock():
        pass
    place.bucket.lease(place, age=LEASE_SECONDS + 1)
    with place.backing().lock():
        assert b"elsewhere" not in place.bucket.get(place.lease)
    assert not place.bucket.keys(f"{place.prefix}.lock")


def test_another_machines_clock_may_be_wrong(place: Place, quick: None) -> None:
    """Its signs are dated long ago, but it renews them."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            place.bucket.lease(place, age=1e6)

    place.bucket.lease(place, age=1e6)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(StoreError, match="in use by"), place.backing().lock():
            pass
    finally:
        stop.set()
        thread.join()
    assert b"elsewhere" in place.bucket.get(place.lease)


def test_of_many_one_gets_it(place: Place) -> None:
    """Both when there is no lease and when all see the same dead holder."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for left in ({}, {"machine": machine(), "pid": dead.pid}) * 3:
        if left:
            place.bucket.lease(place, **left)
        together, done, got = threading.Barrier(6), threading.Barrier(6), []

        def take(together: Any = together, done: Any = done, got: list[bool] = got) -> None:
            backing = place.backing()
            together.wait()
            try:
                with backing.lock():
                    got.append(True)
                    done.wait()
            except StoreError:
                got.append(False)
                done.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 5 + [True]


def test_a_holder_that_lost_its_lease_stops_writing(place: Place, quick: None) -> None:
    store = place.create()
    store.write_schedule(())
    with place.backing().lock():
        store.write_config({})
        (held,) = LEASES[f"{BUCKET}/{place.prefix}"]
        place.bucket.lease(place)
        while not held.lost:
            time.sleep(0.01)
        with pytest.raises(StoreError, match="another process took over"):
            store.write_schedule(())
        with pytest.raises(StoreError, match="another process took over"):
            store.write_config({"mine": 1})
        with pytest.raises(StoreError, match="another process took over"):
            store.delete("schedule")
    assert b"elsewhere" in place.bucket.get(place.lease)
    assert place.open().config == {}


@pytest.mark.parametrize(
    "name",
    ["{url}", "{url}/", "{url}/heldout", "{url}/tasks/dog", "s3a://{rest}", "S3://{rest}/heldout/", "s3://{coded}/tasks/dog"],
)
def test_nothing_is_written_below_a_lost_lease_by_any_name(place: Place, name: str) -> None:
    place.create().inside_or_create(HELDOUT, {})
    rest = place.url.removeprefix("s3://")
    other = place.backing(name.format(url=place.url, rest=rest, coded=rest.replace("run", "r%75n")))
    with place.backing().lock():
        other.put("before", [b"1"])
        (held,) = LEASES[f"{BUCKET}/{place.prefix}"]
        held.lost = True
        with pytest.raises(StoreError, match="another process took over"):
            other.put("after", [b"1"])
        with pytest.raises(StoreError, match="another process took over"):
            other.delete("before")
        beside = place.backing(f"{place.url}2")
        beside.put("mine", [b"1"])
        beside.delete("mine")


@pytest.mark.parametrize("name", ["{url}", "{url}/", "{url}/heldout", "{url}/tasks/dog", "s3a://{rest}", "s3://{coded}/heldout"])
def test_a_place_has_one_lease_by_any_name(place: Place, name: str) -> None:
    place.create().inside_or_create(HELDOUT, {})
    rest = place.url.removeprefix("s3://")
    other = place.backing(name.format(url=place.url, rest=rest, coded=rest.replace("run", "r%75n")))
    for one, two in ((place.backing(), other), (other, place.backing())):
        with one.lock(), pytest.raises(StoreError, match=f"is in use by process {os.getpid()} on "), two.lock():
            pass
    with shard_locked(place.backing(), 1, 2):
        assert other.other_locks() == ["1-of-2"]
        with pytest.raises(StoreError, match="in use by"):
            other.check_free()


def test_held_out_prompts_alone_are_a_place_of_their_own(place: Place) -> None:
    alone = place.backing(f"{place.url}/heldout")
    with alone.lock(), place.backing().lock():
        assert {key for key in LEASES if LEASES[key]} == {f"{BUCKET}/{place.prefix}", f"{BUCKET}/{place.prefix}/heldout"}


def test_a_holder_that_was_stopped_for_long_looks_before_it_writes(place: Place) -> None:
    backing = place.backing()
    with backing.lock():
        (held,) = LEASES[f"{BUCKET}/{place.prefix}"]
        held._renewed -= LEASE_SECONDS
        backing.put("mine", [b"1"])
        assert not held.is_overdue()
        held._renewed -= LEASE_SECONDS
        place.bucket.lease(place)
        with pytest.raises(StoreError, match="another process took over"):
            backing.put("mine", [b"2"])
    assert place.bucket.get(f"{place.prefix}/mine") == b"1"


def test_a_network_that_is_away_for_a_while(place: Place, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs that fail are tried again; only a write without a recent sign is refused."""
    backing, tried = place.backing(), []

    async def away(*_: Any) -> None:
        tried.append(1)
        raise ResourceError("away", "")

    with backing.lock():
        (held,) = LEASES[f"{BUCKET}/{place.prefix}"]
        with monkeypatch.context() as broken:
            broken.setattr(LeasedObjectStore, "replace_lease", away)
            while len(tried) < 2:
                time.sleep(0.01)
            backing.put("mine", [b"1"])
            held._renewed -= LEASE_SECONDS
            with pytest.raises(ResourceError, match="away"):
                backing.put("mine", [b"2"])
        while held.is_overdue():
            time.sleep(0.01)
        backing.put("mine", [b"3"])
    assert place.bucket.get(f"{place.prefix}/mine") == b"3"
