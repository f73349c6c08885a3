"""A lease: the right to write at a URL, as long as its holder gives signs of life.

Anybody may take a lease over whose holder is dead or was silent for long. So a holder asks its leases before it writes: `LEASES`.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
from zarr.core.sync import sync

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.store.locks import holder_text

RENEW_SECONDS = 15.0
# A holder begins no write later than half of this after its last sign, and obstore ends a write within the other half (15 s of
# retries, at most 15 s before the last of them, 30 s for that one): nothing arrives once the lease may be somebody else's.
LEASE_SECONDS = 120.0


class LeaseObjects(Protocol):
    """What a lease asks of the place that keeps it."""

    async def read_lease(self, key: str) -> tuple[dict[str, Any] | None, Any]:
        """(a lease, the tag that this version of it has)."""

    async def replace_lease(self, key: str, data: bytes, tag: Any) -> None:
        """Write a lease, unless it is not the version of the tag any more."""

    async def delete(self, key: str) -> None: ...


class Lease:
    """The object `key` among the leases of a place, held or wished for."""

    def __init__(self, objects: LeaseObjects, key: str) -> None:
        self.lost = False
        self._objects, self._key, self._nonce = objects, key, uuid.uuid4().hex
        self._guard = threading.Lock()
        self._renewed = 0.0
        self._found: dict[str, Any] | None = None
        self._tag: Any = None

    def holder(self) -> str | None:
        """The words of whoever has the lease and may be alive."""
        self._found, self._tag = sync(self._objects.read_lease(self._key))
        if self._found is None or _is_dead(self._found):
            return None
        return f"{self._found['text']} (if it was killed, the store is free {LEASE_SECONDS:.0f} s after its last sign)"

    def acquire(self) -> str | None:
        """Take the lease; returns the holder's words if somebody else has it."""
        if holder := self.holder():
            return holder
        if self._found and self._found["machine"] != machine():
            time.sleep(RENEW_SECONDS * 4 / 3)  # clocks differ: one that lives after all renews its lease in this time
        self.lost = False
        self.renew()
        return "a process that was faster" if self.lost else None

    def is_overdue(self) -> bool:
        return time.time() - self._renewed > LEASE_SECONDS / 2

    def renew(self) -> None:
        """Give a sign, unless the lease is somebody else's by now; once lost it is never taken back."""
        with self._guard:
            if self.lost:
                return
            sign = {"text": holder_text(), "machine": machine(), "pid": os.getpid(), "time": time.time()}
            sync(self._objects.replace_lease(self._key, json.dumps({"nonce": self._nonce, **sign}).encode(), self._tag))
            # Read in any case: a put that was tried twice may have failed against itself.
            found, self._tag = sync(self._objects.read_lease(self._key))
            self.lost = found is None or found["nonce"] != self._nonce
            self._renewed = float(found["time"]) if found and not self.lost else 0.0

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Give signs until the end, then give the lease back."""
        stop = threading.Event()

        def renew() -> None:
            while not self.lost and not stop.wait(RENEW_SECONDS):
                with contextlib.suppress(ResourceError):  # it is tried again, and the next write fails if that is too late
                    self.renew()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(ResourceError):  # a broken network must not hide what went wrong before
                found, _ = sync(self._objects.read_lease(self._key))
                if found and found["nonce"] == self._nonce:
                    sync(self._objects.delete(self._key))


# The leases that this process holds on each URL: whoever writes below one asks them.
LEASES: defaultdict[str, list[Lease]] = defaultdict(list)


def _is_dead(lease: Mapping[str, Any]) -> bool:
    if lease["machine"] == machine() and not psutil.pid_exists(int(lease["pid"])):
        return True
    return time.time() - float(lease["time"]) > LEASE_SECONDS


def machine() -> str:
    """Where a process id means one process: containers may share a host's name, but not its process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # only Linux has them
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
