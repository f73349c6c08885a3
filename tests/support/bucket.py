"""A bucket on a real S3 server in a process of its own (moto), and places for stores in it."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import yaml
from obstore.store import S3Store

from nullbooth_cli.store import Backing, Store, open_backing
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
        self.objects = S3Store(BUCKET, **self.options)

    def keys(self, prefix: str = "") -> list[str]:
        return [item["path"] for item in obstore.list(self.objects, prefix=prefix).collect()]

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self.objects, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self.objects, key, data)

    def delete(self, key: str) -> None:
        obstore.delete(self.objects, key)

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

    def create(self) -> Store:
        return Store.create(self.url, {}, self.bucket.options)

    def open(self, *, write: bool = False) -> Store:
        return Store.open(self.url, write=write, options=self.bucket.options)

    def backing(self, url: str | None = None) -> Backing:
        return open_backing(url or self.url, self.bucket.options)


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """A server with an empty bucket, for the time of the block."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        try:
            yield Bucket(endpoint)
        finally:
            server.kill()
