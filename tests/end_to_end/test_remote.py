"""A store at a URL, on a real S3 server in its own process (moto): the same as in a folder, whatever is killed on the way."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import yaml
import zarr
from obstore.store import S3Store
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store import Heartbeat, Store, clients, lease, open_backing
from nullbooth_cli.store.lease import LEASE_SECONDS, LEASES, machine
from tests.support.builders import small_config

ACCESS, SECRET, BUCKET = "AKIATESTACCESSKEY", "wJalrXUtnFEMI-test-secret", "nullbooth"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
HOLDER = """
import json, sys, time
from nullbooth_cli.store import open_backing
with open_backing(sys.argv[1], json.loads(sys.argv[2])).lock():
    print(1, flush=True)
    time.sleep(600)
"""


class Bucket:
    """The server's bucket, looked at past nullbooth."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.options: dict[str, Any] = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": ACCESS,
            "secret_access_key": SECRET,
            "client_options": {"allow_http": True},
        }
        self.fsspec = {"client": "fsspec", "endpoint_url": endpoint, "key": ACCESS, "secret": SECRET}
        self.objects = S3Store(BUCKET, **self.options)

    def keys(self, prefix: str = "") -> list[str]:
        return [item["path"] for item in obstore.list(self.objects, prefix=prefix).collect()]

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self.objects, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self.objects, key, data)

    def lease(self, place: "Place", **changes: Any) -> None:
        """Put a lease of another machine, `age` seconds after its last sign."""
        age = changes.pop("age", 0.0)
        lease = {"nonce": uuid.uuid4().hex, "text": "process 7 on elsewhere", "machine": "elsewhere", "pid": 7}
        self.put(place.lease, json.dumps({**lease, "time": time.time() - age, **changes}).encode())


class Place:
    """A store's place in the bucket that no other test uses, with a config file that names it."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.bucket, self.folder = bucket, folder
        self.prefix = f"{folder.name}-{uuid.uuid4().hex[:8]}/run.zarr"
        self.url, self.lease = f"s3://{BUCKET}/{self.prefix}", f"{self.prefix}.lock/all"

    def config(self, options: dict[str, Any] | None = None, **changes: Any) -> str:
        store = changes.pop("store", self.url)
        few = {"schedule__num_denoising_steps": 2, "collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 2}
        config = small_config(store, **few | changes).model_copy(
            update={"storage_options": self.bucket.options if options is None else options}
        )
        file = self.folder / "c.yaml"
        file.write_text(yaml.safe_dump(config.model_dump()))
        return str(file)

    def open(self) -> Store:
        return Store.open(self.url, options=self.bucket.options)

    def backing(self, options: dict[str, Any] | None = None) -> Any:
        return open_backing(self.url, options or self.bucket.options)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield Bucket(endpoint)
        server.kill()


@pytest.fixture
def place(bucket: Bucket, tmp_path: Path) -> Place:
    return Place(bucket, tmp_path)


@pytest.fixture(scope="module")
def local(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same run in a folder."""
    place = Place(bucket, tmp_path_factory.mktemp("local"))
    store = place.folder / "run.zarr"
    answered(nullbooth("run", "-c", place.config(store=store, collect__keep="both")))
    return Store.open(store)


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="nullbooth")


def process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nullbooth_cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answered(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert "error: " in result.stderr
    assert "\n\nhint: " in result.stderr
    assert SECRET not in result.output
    for word in words:
        assert word in result.stderr


def assert_same(store: Store, expected: Store, *groups: str) -> None:
    """Arrays hold the same values; counts and other integers exactly."""
    for name in groups:
        ours, theirs = (zarr.open_group(s._backing.zarr, mode="r", path=name) for s in (store, expected))
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
    @pytest.mark.parametrize(("client", "keep"), [("obstore", "features"), ("obstore", "both"), ("fsspec", "features")])
    def test_equals_the_run_in_a_folder(self, place: Place, local: Store, client: str, keep: str) -> None:
        options = place.bucket.fsspec if client == "fsspec" else place.bucket.options
        config = place.config(options, collect__keep=keep)
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

    @pytest.mark.parametrize("client", ["obstore", "fsspec"])
    def test_a_run_is_watched_and_nothing_is_written(self, place: Place, client: str) -> None:
        options = place.bucket.fsspec if client == "fsspec" else None
        config = place.config(options)
        answered(nullbooth("schedule", "-c", config))
        store = Store.open(place.url, write=True, options=options or place.bucket.options)
        now = time.time()
        for worker in ("1-of-2.0", "2-of-2.0"):
            store.heartbeats.write(Heartbeat(worker, "collect", "elsewhere", 7, now - 9, 3, now - 1, 2.0, now))
        before = {key: place.bucket.get(key) for key in place.bucket.keys(place.prefix)}
        shown = answered(nullbooth("status", "-c", config, "--watch", "--check", "schedule", "--json"))
        assert [worker["worker"] for worker in json.loads(shown)["workers"]] == ["1-of-2.0", "2-of-2.0"]
        assert json.loads(shown)["stages"]["collect"]["units_per_minute"] == 60.0
        assert {key: place.bucket.get(key) for key in place.bucket.keys(place.prefix)} == before
        store.heartbeats.remove("1-of-2.0")
        assert [note.worker for note in store.heartbeats.read()] == ["2-of-2.0"]

    def test_two_shards_at_once_equal_one_process(self, place: Place, local: Store) -> None:
        config = place.config(collect__keep="both")
        shards = [process("collect", "-c", config, "--shard", f"{number}/2") for number in (1, 2)]
        for shard in shards:
            _, said = shard.communicate(timeout=120)
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
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)

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

    @pytest.mark.parametrize("client", ["options", "fsspec"])
    def test_another_machines_lease_counts_until_it_is_too_old(self, place: Place, quick: None, client: str) -> None:
        options = getattr(place.bucket, client)
        place.bucket.lease(place, age=LEASE_SECONDS / 2)
        with pytest.raises(StoreError, match="in use by process 7 on elsewhere"), place.backing(options).lock():
            pass
        place.bucket.lease(place, age=LEASE_SECONDS + 1)
        with place.backing(options).lock():
            assert b"elsewhere" not in place.bucket.get(place.lease)
        assert not place.bucket.keys(f"{place.prefix}.lock")

    @pytest.mark.parametrize("client", ["options", "fsspec"])
    def test_another_machines_clock_may_be_wrong(self, place: Place, quick: None, client: str) -> None:
        """It says that it is long dead, but goes on renewing."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(0.05):
                place.bucket.lease(place, age=1e6)

        place.bucket.lease(place, age=1e6)
        thread = threading.Thread(target=renew)
        thread.start()
        try:
            with pytest.raises(StoreError, match="in use by"), place.backing(getattr(place.bucket, client)).lock():
                pass
        finally:
            stop.set()
            thread.join()
        assert b"elsewhere" in place.bucket.get(place.lease)

    def test_of_many_one_gets_it(self, place: Place) -> None:
        """Both when there is none and when all see the same dead holder."""
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

    @pytest.mark.parametrize("client", ["options", "fsspec"])
    def test_who_lost_it_stops_writing(self, place: Place, quick: None, client: str) -> None:
        options = getattr(place.bucket, client)
        answered(nullbooth("schedule", "-c", place.config()))
        store = Store.open(place.url, write=True, options=options)
        with place.backing(options).lock():
            store.write_config({})
            place.bucket.lease(place)
            time.sleep(1)
            with pytest.raises(StoreError, match="another process took over"):
                store.write_schedule(())
            with pytest.raises(StoreError, match="another process took over"):
                store.write_config({"mine": 1})
            with pytest.raises(StoreError, match="another process took over"):
                store.delete("schedule")
        assert b"elsewhere" in place.bucket.get(place.lease)
        assert Store.open(place.url, options=options).config == {}

    def test_who_was_stopped_for_long_looks_before_it_writes(self, place: Place) -> None:
        backing = place.backing()
        with backing.lock():
            (held,) = LEASES[place.url]
            held._renewed -= LEASE_SECONDS
            backing.put("mine", [b"1"])
            assert not held.is_overdue()
            held._renewed -= LEASE_SECONDS
            place.bucket.lease(place)
            with pytest.raises(StoreError, match="another process took over"):
                backing.put("mine", [b"2"])
        assert place.bucket.get(f"{place.prefix}/mine") == b"1"

    def test_a_network_that_is_away_for_a_while(self, place: Place, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Signs that fail are tried again; only a write without a recent sign is refused."""
        backing, tried = place.backing(), []

        async def away(*_: Any) -> None:
            tried.append(1)
            raise ResourceError("away", "")

        with backing.lock():
            (held,) = LEASES[place.url]
            with monkeypatch.context() as broken:
                broken.setattr(clients._Obstore, "replace_lease", away)
                time.sleep(1)
                assert len(tried) > 1
                backing.put("mine", [b"1"])
                held._renewed -= LEASE_SECONDS
                with pytest.raises(ResourceError, match="away"):
                    backing.put("mine", [b"2"])
            time.sleep(0.5)
            backing.put("mine", [b"3"])
        assert place.bucket.get(f"{place.prefix}/mine") == b"3"


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

    @pytest.mark.parametrize("command", ["schedule", "status"])
    @pytest.mark.parametrize("client", ["obstore", "fsspec"])
    def test_an_endpoint_that_does_not_answer(self, place: Place, command: str, client: str) -> None:
        options = {**place.bucket.options, "endpoint": "http://127.0.0.1:1"}
        if client == "fsspec":
            options = {**place.bucket.fsspec, "endpoint_url": "http://127.0.0.1:1"}
        started = time.monotonic()
        refused(nullbooth(command, "-c", place.config(options), "-v"), 5, f"cannot reach {place.url}", "127.0.0.1:1")
        assert time.monotonic() - started < 30

    @pytest.mark.parametrize("command", ["schedule", "status"])
    @pytest.mark.parametrize("client", ["options", "fsspec"])
    def test_no_such_bucket(self, place: Place, command: str, client: str) -> None:
        config = place.config(getattr(place.bucket, client), store="s3://nowhere/run.zarr")
        refused(nullbooth(command, "-c", config, "-v"), 5, "cannot reach s3://nowhere/run.zarr")

    @pytest.mark.parametrize("client", ["options", "fsspec"])
    def test_a_key_that_the_server_does_not_know(self, place: Place, client: str) -> None:
        def check_from(action: str) -> None:
            request = urllib.request.Request(
                f"{place.bucket.endpoint}/moto-api/reset-auth", data=action.encode(), headers={"Content-Type": "text/plain"}
            )
            urllib.request.urlopen(request).close()

        check_from("0")
        try:
            config = place.config(getattr(place.bucket, client))
            refused(nullbooth("schedule", "-c", config, "-v"), 5, f"cannot reach {place.url}")
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
        for command in (["schedule", "-c", place.config(store=url), "-v"], ["status", "-s", url]):
            result = nullbooth(*command)
            refused(result, 2, words)
            assert "hidden" not in result.output

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"client": "boto"}, "storage_options.client: boto"),
            ({"key": ACCESS, "secret": SECRET}, "cannot open"),
            ({"client": "fsspec", "asynchronous": False, "secret": SECRET, "key": {}}, "cannot open"),
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
        obstore.delete(place.bucket.objects, deleted)

        shown = nullbooth("status", "-c", config, "--verify", "--json")
        assert shown.exit_code == 4
        reasons = {0: "its checksum is wrong", 1: "it is empty", 3: "it is missing"}
        named = [f"{place.url}: features/{site} chunk c.0.{unit}.0.0 is damaged: {why}" for unit, why in reasons.items()]
        assert sorted(damage["error"] for damage in json.loads(shown.stdout)["verify"]["damaged"]) == sorted(named)
        refused(nullbooth("covariance", "-c", config), 4, named[0], f"nullbooth collect --repair -s {place.url}")
        answered(nullbooth("collect", "-c", config, "--repair"))
        answered(nullbooth("covariance", "-c", config))


class TestDoctor:
    """What `nullbooth doctor` does at a URL; its other checks are in test_doctor."""

    @pytest.mark.parametrize("client", ["obstore", "fsspec"])
    def test_writing_is_tried_and_leaves_nothing(self, place: Place, client: str) -> None:
        options = place.bucket.fsspec if client == "fsspec" else place.bucket.options
        document = json.loads(answered(nullbooth("doctor", "-c", place.config(options), "--device", "cpu", "--json")))
        assert {each["verdict"] for each in document["checks"] if each["check"] != "projectors"} == {"ok"}
        assert not place.bucket.keys(place.prefix)
        assert "nobody counts what is free there" in str(document)

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

    @pytest.mark.parametrize("client", ["obstore", "fsspec"])
    def test_writing_is_refused(self, place: Place, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("403 Forbidden")

        monkeypatch.setattr(clients.WrapperStore, "set", refuse)
        options = place.bucket.fsspec if client == "fsspec" else place.bucket.options
        result = nullbooth("doctor", "-c", place.config(options), "--device", "cpu")
        assert result.exit_code == 2
        assert re.search(r"error +write access +cannot reach \S+: 403 Forbidden", result.stdout)
