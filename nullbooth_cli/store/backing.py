"""Where the bytes of a store are: a local folder (`local`) or an object store behind a URL (`remote`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore

from nullbooth_cli.errors import ResourceError

Bytes = bytes | memoryview
CONCURRENT_WRITES = 8


class UnreadableError(ResourceError):
    """One object that is there, but that the system does not give out. It may be whole, and the others may be readable."""


class Backing(ABC):
    """Objects under keys such as `features/<site>/c.0.0.0.0`.

    `url` names the place in messages, `zarr` is the same place as Zarr sees it. Whatever the system refuses is a ResourceError:
    an object counts as missing only if it is not there.
    """

    url: str
    zarr: ZarrStore

    @abstractmethod
    def inside(self, name: str, *, read_only: bool = False) -> "Backing":
        """The backing of a place below this one."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def is_foreign(self) -> bool:
        """Whether something is there that a new store must not be mixed with."""

    def begins_with(self, start: bytes) -> bool:
        """Whether the place is itself a file that begins with these bytes; False where that is not known."""
        return False

    @abstractmethod
    def get(self, key: str) -> NDArray[np.uint8] | None:
        """All bytes of an object, `[bytes]`, or None if there is none. A folder in its place has no bytes."""

    def get_many(self, keys: list[str]) -> list[NDArray[np.uint8] | None]:
        """`get` of each key; a URL is asked for many of them at once."""
        return [self.get(key) for key in keys]

    @abstractmethod
    def put(self, key: str, parts: list[Bytes]) -> None:
        """Write an object whole, from buffers in order: a reader sees the old object or the new one."""

    def put_many(self, objects: list[tuple[str, list[Bytes]]]) -> None:
        """Write several objects that do not depend on each other: they wait for the disk or the network together."""
        with ThreadPoolExecutor(CONCURRENT_WRITES) as pool:
            for done in [pool.submit(self.put, key, parts) for key, parts in objects]:
                done.result()

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything that was put is durable."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def keys(self, prefix: str) -> set[str]:
        """The keys of all objects below a group."""

    @abstractmethod
    def nbytes(self, prefix: str) -> int:
        """Bytes of all objects below a group."""

    @abstractmethod
    def free_nbytes(self) -> int | None:
        """Bytes that can still be written; None if that is unknown."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove the unfinished writes of killed processes. Call it with the lock held."""

    @abstractmethod
    def lock(self, name: str = "", wait: float = 0) -> AbstractContextManager[None]:
        """Hold the place for writing, after at most `wait` seconds. Raises StoreError that names the holder.

        A place has one lock, by whatever name it was opened; the store of the held-out prompts has that of the store around it.
        """

    @abstractmethod
    def other_locks(self) -> list[str]:
        """The names of all locks that were ever taken here, except the unnamed one."""

    @abstractmethod
    def check_writable(self) -> None:
        """Write something small where the store is or would be, and remove it. Raises ResourceError if that is refused."""

    @abstractmethod
    def check_free(self) -> None:
        """Raise StoreError that names the holder if the place, or a shard of it, is held."""

    @abstractmethod
    def failure(self, error: OSError) -> ResourceError:
        """The nullbooth error for an error of the operating system."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of the operating system into their `failure`."""
        try:
            yield
        except OSError as error:
            raise self.failure(error) from error
