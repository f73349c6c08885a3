"""The right to write: to the whole store, or as one shard of it."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store.backing import Backing

PROBE_SECONDS = 2.0  # a process that checks a lock holds it for a moment


def holder_text() -> str:
    """This process, as a lock names its holder."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def in_use(url: str, holder: str) -> StoreError:
    """The error of a lock that another process holds."""
    return StoreError(f"{url} is in use by {holder or 'another process'}", "wait for it, or stop it: what it has finished stays")


@contextlib.contextmanager
def locked(backing: Backing, wait: float = 0, *, among_shards: bool = False) -> Iterator[None]:
    """Hold a place for writing: alone, or (for a moment, to prepare it) beside the shards at work on it.

    With no other writer, unfinished writes of killed processes are removed first. Raises StoreError that names the holder.
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
    """Hold shard `number` of `count`. Raises StoreError if another process holds it, or a shard of another `count`."""
    ending = f"-of-{count}"
    with backing.lock(f"{number}{ending}"):
        # Taken first, then checked: of two launches with different counts that start together, at least one sees the other.
        for name in backing.other_locks():
            if not name.endswith(ending) or name.startswith(f"{number}."):
                with backing.lock(name, PROBE_SECONDS):
                    pass
        yield


def is_held(backing: Backing, name: str) -> bool:
    """Whether some process holds a lock; True also where that cannot be known. Takes a free lock for a moment."""
    try:
        with backing.lock(name):
            return False
    except (StoreError, ResourceError):
        return True
