"""Where the bytes of a store are: a local folder (`local`) or an object store behind a URL (`remote`)."""

import contextlib
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore

from nullbooth_cli.errors import ResourceError, StoreError

Part = bytes | memoryview
CONCURRENT_WRITES = 8
PROBE_SECONDS = 2.0  # a lock is held for a moment by whoever looks whether it is held


class Backing(ABC):
    """Objects under keys such as `features/<site>/c.0.0.0.0`. `url` names the place in messages and commands."""

    url: str
    zarr: ZarrStore

    @abstractmethod
    def inside(self, name: str, *, read_only: bool = False) -> "Backing":
        """The backing of a place below this one."""

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def is_foreign(self) -> bool:
        """Whether something is there already where a new store should be made."""

    @abstractmethod
    def get(self, key: str) -> NDArray[np.uint8] | None:
        """All bytes of an object, or None if there is none."""

    def get_many(self, keys: list[str]) -> list[NDArray[np.uint8] | None]:
        return [self.get(key) for key in keys]

    @abstractmethod
    def put(self, key: str, parts: list[Part]) -> None:
        """Write an object whole: a reader sees the old one or the new one. Raises ResourceError if it cannot be written."""

    def put_many(self, objects: list[tuple[str, list[Part]]]) -> None:
        """Write several objects, none of which depends on another: they wait for the disk or the network together."""
        with ThreadPoolExecutor(CONCURRENT_WRITES) as pool:
            for done in [pool.submit(self.put, key, parts) for key, parts in objects]:
                done.result()

    @abstractmethod
    def sync(self) -> None:
        """Return when everything that was put is durable."""

    @abstractmethod
    def delete(self, key: str) -> None: ...

    @abstractmethod
    def nbytes(self, prefix: str) -> int:
        """Bytes of all objects below a group."""

    @abstractmethod
    def free_nbytes(self) -> int | None:
        """Bytes that can still be written; None where nobody counts them."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed writers left half written. Call it with the lock held."""

    @abstractmethod
    def lock(self, name: str = "", wait: float = 0) -> AbstractContextManager[None]:
        """Hold the place for writing, waiting so many seconds for it. Raises StoreError naming the holder."""

    @abstractmethod
    def other_locks(self) -> list[str]:
        """Names of the locks that were ever taken here beside the unnamed one."""

    @abstractmethod
    def check_writable(self) -> None:
        """Write something small where the store is or would be, and remove it. Raises ResourceError if that is refused."""

    @abstractmethod
    def check_free(self) -> None:
        """Raise StoreError naming the holder if the place, or a shard of it, is held."""

    @abstractmethod
    def failure(self, error: OSError) -> ResourceError | StoreError:
        """What an error of the system means to the user."""


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def open_backing(place: str | Path, options: Mapping[str, Any] | None = None, *, read_only: bool = False) -> Backing:
    """The backing of a path or URL. `options` are what the object store's client takes; they are kept nowhere."""
    if is_url(place):
        from nullbooth_cli.store.remote import RemoteBacking

        return RemoteBacking(str(place), options or {}, read_only=read_only)
    from nullbooth_cli.store.local import LocalBacking

    return LocalBacking(Path(place), read_only=read_only)


def holder_text() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def in_use(url: str, holder: str) -> StoreError:
    return StoreError(f"{url} is in use by {holder or 'another process'}", "wait for it, or stop it; its finished units are kept")


@contextlib.contextmanager
def locked(backing: Backing, wait: float = 0, *, among_shards: bool = False) -> Iterator[None]:
    """Hold a place for writing: alone, or (for the moment in which one prepares it) beside the shards that work on it.

    Who is alone finds nothing that killed writers left half written.
    """
    with backing.lock(wait=wait):
        if not among_shards:
            for name in backing.other_locks():
                with backing.lock(name, PROBE_SECONDS):
                    pass
            backing.sweep()
        yield


@contextlib.contextmanager
def shard_locked(backing: Backing, number: int, count: int) -> Iterator[None]:
    """Hold one shard of a place. Raises StoreError if another process holds it, or a shard of another division."""
    ending = f"-of-{count}"
    with backing.lock(f"{number}{ending}"):
        # First taken, then looked: of two divisions that begin at the same moment at least one sees the other.
        for name in backing.other_locks():
            if not name.endswith(ending) or name.startswith(f"{number}."):
                with backing.lock(name, PROBE_SECONDS):
                    pass
        yield
