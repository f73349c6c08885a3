"""Where the bytes of a store are: a local folder (`local`) or an object store behind a URL (`remote`)."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore

from nullbooth_cli.errors import ResourceError, StoreError

Bytes = bytes | memoryview
CONCURRENT_WRITES = 8


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
    def put(self, key: str, parts: list[Bytes]) -> None:
        """Write an object whole: a reader sees the old one or the new one. Raises ResourceError if it cannot be written."""

    def put_many(self, objects: list[tuple[str, list[Bytes]]]) -> None:
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
