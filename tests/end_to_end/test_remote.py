"""A store at a URL, on a real S3 server in its own process (moto): the same as in a folder, whatever is killed on the way."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import Result
from zarr.storage import WrapperStore

from nullbooth_cli.store import Store
from tests.support.bucket import ACCESS, SECRET, Bucket, Place
from tests.support.cli import nullbooth
from tests.support.cli import refused as refused_by_cli
from tests.support.notes import note

HOLDER = """
import json, sys, time
from nullbooth_cli.store import open_backing
with open_backing(sys.argv[1], json.loads(sys.argv[2])).lock():
    print(1, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def local(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same run in a folder."""
    place = Place(bucket, tmp_path_factory.mktemp("local"))
    store = place.folder / "run.zarr"
    answered(nullbooth("run", "-c", place.config(store=store, collect__keep="both")))
    return Store.open(store)


def process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nullbooth_cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answered(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, exit_code: int, *words: str) -> None:
    assert SECRET not in result.output
    refused_by_cli(result, exit_code, *words)


def assert_same(store: Store, expected: Store, *groups: str) -> None:
    """Arrays hold the same values; counts and other integers exactly."""
    for name in groups:
        ours, theirs = (zarr.open_group(s.arrays.backing.zarr, mode="r", path=name) for s in (store, expected))
        arrays = {key: array for key, array in theirs.members(max_depth=None) if isinstance(array, zarr.Array)}
        assert arrays
        for key, array in arrays.items():
            found, wanted = np.asarray(ours[key][:]), np.asarray(array[:])
            if key.endswith("eigenvectors"):  # their sign is free, and so is a basis of (nearly) equal eigenvalues
                found, wanted = (vectors @ vectors.swapaxes(-1, -2) for vectors in (found, wanted))
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.nanmax(np.abs(wanted)), err_msg=key)
            else:
                np.testing.assert_array_equal(found, wanted, err_msg=key)


class TestPipeline:
    @pytest.mark.parametrize("keep", ["features", "both"])
    def test_equals_the_run_in_a_folder(self, place: Place, local: Store, keep: str) -> None:
        config = place.config(collect__keep=keep)
        assert "dimensions are null" in answered(nullbooth("run", "-c", config))
        assert_same(place.open(), local, "schedule", "prompts", "features", "moments", "projectors")
        assert not place.bucket.keys(f"{place.prefix}.lock")

        stages = json.loads(answered(nullbooth("status", "-c", config, "--json", "--verify")))
        assert {stage["state"] for stage in stages["stages"].values()} == {"complete"}
        assert stages["verify"]["damaged"] == []
        features = place.bucket.keys(f"{place.prefix}/features")
        parts = place.bucket.keys(f"{place.prefix}/parts")
        stored = sum(len(place.bucket.get(key)) for key in [*features, *parts])
        assert stages["stages"]["collect"]["bytes"] == stored
        inspected = json.loads(answered(nullbooth("inspect", "-c", config, "--json")))
        assert inspected["store"] == place.url
        assert len(inspected["sites"]) == 3

    def test_the_url_alone_is_enough(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        answered(nullbooth("schedule", "-c", place.config()))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", place.bucket.endpoint)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        assert "complete" in answered(nullbooth("status", "-s", place.url))

    def test_set_says_how_to_get_there(self, place: Place) -> None:
        answered(nullbooth("schedule", "-c", place.config()))
        flat = {key: value for key, value in place.bucket.options.items() if key != "client_options"}
        sets = [f"storage_options.{key}={value}" for key, value in flat.items()] + [
            "storage_options.client_options.allow_http=true"
        ]
        arguments = [word for text in sets for word in ("--set", text)]
        shown = nullbooth("status", "-s", place.url, *arguments)
        assert "complete" in answered(shown)
        assert SECRET not in shown.output

    def test_a_run_is_watched_and_nothing_is_written(self, place: Place) -> None:
        config = place.config()
        answered(nullbooth("schedule", "-c", config))
        store = place.open(write=True)
        for worker in ("1-of-2.0", "2-of-2.0"):
            store.heartbeats.write(note(worker))
        before = {key: place.bucket.get(key) for key in place.bucket.keys(place.prefix)}
        shown = answered(nullbooth("status", "-c", config, "--watch", "--check", "schedule", "--json"))
        assert [worker["worker"] for worker in json.loads(shown)["workers"]] == ["1-of-2.0", "2-of-2.0"]
        assert json.loads(shown)["stages"]["collect"]["units_per_minute"] == pytest.approx(30.0)
        assert {key: place.bucket.get(key) for key in place.bucket.keys(place.prefix)} == before
        store.heartbeats.remove("1-of-2.0")
        assert [left.worker for left in store.heartbeats.read()] == ["2-of-2.0"]

    def test_two_shards_at_once_equal_one_process(self, place: Place, local: Store) -> None:
        config = place.config(collect__keep="both")
        shards = [process("collect", "-c", config, "--shard", f"{number}/2") for number in (1, 2)]
        for shard in shards:
            _, said = shard.communicate()
            assert shard.returncode == 0, said
        answered(nullbooth("covariance", "-c", config))
        assert_same(place.open(), local, "features", "moments")
        assert not place.bucket.keys(f"{place.prefix}.lock")

    def test_killed_and_resumed_equals_the_uninterrupted_run(self, place: Place, local: Store) -> None:
        """Killed while it holds the lease; the next process takes that over at once and goes on."""
        config, lease_and_features = place.config(collect__keep="both"), (f"{place.prefix}.lock", f"{place.prefix}/features")
        for num_objects in sorted(random.sample(range(28), 3)):  # there are 28 in the end: 3 sites, 2 steps, 4 units, metadata
            collecting = process("collect", "-c", config)
            while collecting.poll() is None and not (
                place.bucket.keys(lease_and_features[0]) and len(place.bucket.keys(lease_and_features[1])) >= num_objects
            ):
                time.sleep(0.01)
            collecting.kill()
            _, said = collecting.communicate()
            assert collecting.returncode in (0, -signal.SIGKILL), said
        answered(nullbooth("run", "-c", config))
        assert_same(place.open(), local, "features", "moments", "projectors")


class TestLease:
    @pytest.fixture
    def held(self, place: Place) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", HOLDER, place.url, json.dumps(place.bucket.options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "1\n"
            yield holder
            holder.kill()

    def test_a_live_holder_is_named_and_a_dead_one_replaced(self, place: Place, held: subprocess.Popen[str]) -> None:
        refused(nullbooth("schedule", "-c", place.config()), 4, f"{place.url} is in use by process {held.pid} on ")
        held.kill()
        held.wait()
        assert place.bucket.keys(f"{place.prefix}.lock")
        answered(nullbooth("schedule", "-c", place.config()))
        assert not place.bucket.keys(f"{place.prefix}.lock")


class TestErrors:
    def test_no_credentials_anywhere(self, place: Place) -> None:
        shown = nullbooth("collect", "-c", place.config(), "--limit", "1", "-v")
        answered(shown)
        assert f"store {place.url}" in shown.stderr
        assert ACCESS not in shown.output
        assert SECRET not in shown.output
        everything = {key: place.bucket.get(key) for key in place.bucket.keys()}  # noqa: SIM118
        assert any(place.prefix in key for key in everything)
        for key, data in everything.items():
            assert SECRET.encode() not in data, key
            assert ACCESS.encode() not in data, key

    @pytest.mark.timeout(150)  # it takes 15 s: retries come to an end
    @pytest.mark.parametrize("command", ["schedule", "status"])
    def test_an_endpoint_that_does_not_answer(self, place: Place, command: str) -> None:
        options = {**place.bucket.options, "endpoint": "http://127.0.0.1:1"}
        refused(nullbooth(command, "-c", place.config(options), "-v"), 5, f"cannot reach {place.url}", "127.0.0.1:1")

    @pytest.mark.parametrize("command", ["schedule", "status"])
    def test_no_such_bucket(self, place: Place, command: str) -> None:
        config = place.config(store="s3://nowhere/run.zarr")
        refused(nullbooth(command, "-c", config, "-v"), 5, "cannot reach s3://nowhere/run.zarr")

    def test_a_key_that_the_server_does_not_know(self, place: Place) -> None:
        def check_from(action: str) -> None:
            request = urllib.request.Request(
                f"{place.bucket.endpoint}/moto-api/reset-auth", data=action.encode(), headers={"Content-Type": "text/plain"}
            )
            urllib.request.urlopen(request).close()

        check_from("0")
        try:
            refused(nullbooth("schedule", "-c", place.config(), "-v"), 5, f"cannot reach {place.url}")
        finally:
            check_from("inf")

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("s3://key:hidden@bucket/run.zarr", "carries credentials"),
            ("s3://hidden@bucket/run.zarr", "carries credentials"),
            ("https://account.blob.core.windows.net/c/run.zarr?sig=hidden", "carries credentials"),
            ("s3://bucket", "not a place in it"),
        ],
    )
    def test_urls_that_are_none(self, place: Place, url: str, words: str) -> None:
        for command in (["schedule", "-c", place.config(), "--set", f"store={url}", "-v"], ["status", "-s", url]):
            result = nullbooth(*command)
            refused(result, 2, words)
            assert "hidden" not in result.output

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"client": "boto"}, "storage_options.client is gone"),
            ({"key": ACCESS, "secret": SECRET}, "cannot open"),
            ({"client": "fsspec", "asynchronous": False, "secret": SECRET, "key": {}}, "secret_access_key for secret"),
        ],
    )
    def test_options_that_no_client_takes(self, place: Place, options: dict[str, Any], words: str) -> None:
        refused(nullbooth("schedule", "-c", place.config(options)), 2, words)

    def test_something_else_is_there(self, place: Place) -> None:
        place.bucket.put(f"{place.prefix}/mine", b"x")
        refused(nullbooth("schedule", "-c", place.config()), 4, "is not a nullbooth store")
        refused(nullbooth("status", "-c", place.config()), 4, "is not a Zarr v3 group")
        assert place.bucket.keys(place.prefix) == [f"{place.prefix}/mine"]

    def test_damaged_objects_are_named_and_mended(self, place: Place) -> None:
        config = place.config()
        answered(nullbooth("collect", "-c", config))
        site = "mid_block.attentions.0.transformer_blocks.0.attn2.q"
        flipped, emptied, deleted = (f"{place.prefix}/features/{site}/c.0.{unit}.0.0" for unit in (0, 1, 3))
        data = place.bucket.get(flipped)
        place.bucket.put(flipped, bytes([data[0] ^ 1]) + data[1:])
        place.bucket.put(emptied, b"")
        place.bucket.delete(deleted)

        shown = nullbooth("status", "-c", config, "--verify", "--json")
        assert shown.exit_code == 4
        reasons = {0: "its checksum is wrong", 1: "it is empty", 3: "it is missing"}
        named = [f"{place.url}: features/{site} chunk c.0.{unit}.0.0 is damaged: {why}" for unit, why in reasons.items()]
        assert sorted(damage["error"] for damage in json.loads(shown.stdout)["verify"]["damaged"]) == sorted(named)
        repair = f"nullbooth collect --repair -c {config} -s {place.url}"
        refused(nullbooth("covariance", "-c", config), 4, named[2], repair)  # what is missing is seen before anything is read
        answered(nullbooth("collect", "-c", config, "--repair"))
        answered(nullbooth("covariance", "-c", config))


class TestDoctor:
    """What `nullbooth doctor` does at a URL; its other checks are in test_doctor."""

    def test_writing_is_tried_and_leaves_nothing(self, place: Place) -> None:
        document = json.loads(answered(nullbooth("doctor", "-c", place.config(), "--device", "cpu", "--json")))
        assert {each["verdict"] for each in document["checks"] if each["check"] != "projectors"} == {"ok"}
        assert not place.bucket.keys(place.prefix)
        assert "the place cannot report what is free" in str(document)

    def test_what_is_wrong_there(self, place: Place) -> None:
        answered(nullbooth("schedule", "-c", place.config()))
        place.bucket.lease(place)
        keys = place.bucket.keys(place.prefix)
        result = nullbooth("doctor", "-c", place.config(), "--device", "cpu")
        assert result.exit_code == 2
        assert re.search(r"error +lock +\S+ is in use by process 7 on elsewhere", result.stdout)
        assert place.bucket.keys(place.prefix) == keys

        lost = place.config({**place.bucket.options, "endpoint": "http://127.0.0.1:1", "retry_config": {"max_retries": 0}})
        result = nullbooth("doctor", "-c", lost, "--device", "cpu")
        assert result.exit_code == 2
        assert re.search(r"error +store +cannot reach s3://", result.stdout)
        assert re.search(r"ok +probe", result.stdout)
        assert SECRET not in result.output

    def test_writing_is_refused(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("403 Forbidden")

        monkeypatch.setattr(WrapperStore, "set", refuse)
        result = nullbooth("doctor", "-c", place.config(), "--device", "cpu")
        assert result.exit_code == 2
        assert re.search(r"error +write access +cannot reach \S+: 403 Forbidden", result.stdout)
