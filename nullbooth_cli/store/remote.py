"""A store in an object store, by URL: s3://, gs://, az:// through obstore, anything else that fsspec opens through fsspec.

A put is atomic and durable once it returns, so there is nothing to flush. There is no file lock either: a lease stands for it, an
object that its holder renews, and that anybody may take over once its holder is dead or has not renewed it for a while.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from nullbooth_cli.errors import ConfigError, ResourceError, StoreError
from nullbooth_cli.store.backing import Backing, Part, holder_text, in_use

CONCURRENT_READS = 16
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
# Values under these options may be shown; everything else in storage_options counts as secret.
PLAIN_OPTIONS = {"client", "endpoint", "endpoint_url", "region", "aws_region", "aws_endpoint"}


class RemoteBacking(Backing):
    """Objects below a URL."""

    def __init__(self, url: str, options: Mapping[str, Any], *, read_only: bool = False) -> None:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ConfigError("the store's URL carries credentials", "put them into storage_options, or the client's environment")
        self.url = url.rstrip("/")
        self._options = dict(options)
        self.zarr = self._open(self.url, read_only)
        self._locks: ZarrStore | None = None
        self._lost = threading.Event()

    def _open(self, url: str, read_only: bool) -> ZarrStore:
        options = {key: value for key, value in self._options.items() if key != "client"}
        client = self._options.get("client", "obstore")
        if client not in ("obstore", "fsspec"):
            raise ConfigError(f"storage_options.client: {client}", "obstore or fsspec")
        from zarr.storage import FsspecStore, ObjectStore

        try:
            if client == "fsspec":
                return FsspecStore.from_url(url, storage_options=options, read_only=read_only)
            from obstore.store import from_url

            return ObjectStore(from_url(url, **options), read_only=read_only)
        except ImportError as error:
            raise ConfigError(
                f"{url} needs a package that is not there: {error.name}", "pip install 'nullbooth[remote]'"
            ) from None
        except Exception as error:  # each client has errors of its own
            raise self._failure(error) from None

    def exists(self) -> bool:
        return self.get("zarr.json") is not None

    def is_foreign(self) -> bool:
        async def any_key() -> bool:
            async for _ in self.zarr.list():
                return True
            return False

        return bool(self._run(any_key()))

    def get(self, key: str) -> NDArray[np.uint8] | None:
        return self._get(self.zarr, key)

    def _get(self, store: ZarrStore, key: str) -> NDArray[np.uint8] | None:
        found = self._run(store.get(key, default_buffer_prototype()))
        return None if found is None else np.frombuffer(bytearray(found.to_bytes()), np.uint8)

    def get_many(self, keys: list[str]) -> list[NDArray[np.uint8] | None]:
        with ThreadPoolExecutor(CONCURRENT_READS) as pool:
            return list(pool.map(self.get, keys))

    def put(self, key: str, parts: list[Part]) -> None:
        if self._lost.is_set():
            raise StoreError(f"another process took over {self.url}", "this one did not renew its lease in time; run it again")
        self._put(self.zarr, key, b"".join(parts))

    def _put(self, store: ZarrStore, key: str, data: bytes, *, only_new: bool = False) -> None:
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._run(store.set_if_not_exists(key, buffer) if only_new else store.set(key, buffer))

    def sync(self) -> None:
        pass

    def delete(self, key: str) -> None:
        self._run(self.zarr.delete(key))

    def nbytes(self, prefix: str) -> int:
        return int(self._run(self.zarr.getsize_prefix(prefix)))

    def free_nbytes(self) -> int | None:
        return None

    def sweep(self) -> None:
        pass

    @contextlib.contextmanager
    def lock(self, name: str = "", wait: float = 0) -> Iterator[None]:
        key, nonce = name or "all", uuid.uuid4().hex
        deadline = time.monotonic() + wait
        while holder := self._acquire(key, nonce):
            if time.monotonic() > deadline:
                raise in_use(self.url, holder)
            time.sleep(1)
        stop = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(key, nonce, stop), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            if (lease := self._lease(key)) and lease["nonce"] == nonce:
                self._run(self._lock_store().delete(key))

    def _acquire(self, key: str, nonce: str) -> str | None:
        """Take a lease; returns the holder's words if somebody else has it."""
        found = self._lease(key)
        if found is not None:
            if not _is_dead(found):
                return f"{found['text']} (if it was killed, the store is free {LEASE_SECONDS:.0f} s after its last sign)"
            self._run(self._lock_store().delete(key))
        self._put(self._lock_store(), key, _lease_bytes(nonce), only_new=True)
        taken = self._lease(key)
        return None if taken and taken["nonce"] == nonce else "a process that was faster"

    def _renew(self, key: str, nonce: str, stop: threading.Event) -> None:
        while not stop.wait(RENEW_SECONDS):
            found = self._lease(key)
            if found is None or found["nonce"] != nonce:
                self._lost.set()
                return
            self._put(self._lock_store(), key, _lease_bytes(nonce))

    def _lease(self, key: str) -> dict[str, Any] | None:
        data = self._get(self._lock_store(), key)
        return None if data is None else dict(json.loads(data.tobytes()))

    def _lock_store(self) -> ZarrStore:
        # Beside the store: inside, Zarr would find an object that it does not know.
        if self._locks is None:
            self._locks = self._open(f"{self.url}.lock", read_only=False)
        return self._locks

    def other_locks(self) -> list[str]:
        async def names() -> list[str]:
            return [key async for key in self._lock_store().list() if key != "all"]

        return list(self._run(names()))

    def failure(self, error: OSError) -> ResourceError | StoreError:
        return self._failure(error)

    def _run(self, awaitable: Any) -> Any:
        try:
            return sync(awaitable)
        except Exception as error:  # each client has errors of its own
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> ResourceError:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        for secret in _secrets(self._options):
            text = text.replace(secret, "***")
        return ResourceError(
            f"cannot reach {self.url}: {text[:300]}", "check the URL, storage_options and the network; finished units are kept"
        )


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif key not in PLAIN_OPTIONS and isinstance(value, str) and len(value) > 3:
            yield value


def _lease_bytes(nonce: str) -> bytes:
    lease = {"nonce": nonce, "text": holder_text(), "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(lease).encode()


def _is_dead(lease: Mapping[str, Any]) -> bool:
    if lease["host"] == socket.gethostname() and not psutil.pid_exists(int(lease["pid"])):
        return True
    return time.time() - float(lease["time"]) > LEASE_SECONDS
