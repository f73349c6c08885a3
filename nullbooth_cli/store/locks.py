"""Who may write: the whole store, or one shard of it."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store.backing import Backing

PROBE_SECONDS = 2.0  # a lock is held for a moment by whoever looks whether it is held


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


def is_held(backing: Backing, name: str) -> bool:
    """Whether some process holds a lock; True also where nobody can tell. Takes a free lock for a moment."""
    try:
        with backing.lock(name):
            return False
    except (StoreError, ResourceError):
        return True
