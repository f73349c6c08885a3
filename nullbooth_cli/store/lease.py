"""A lease: the right to write at a URL, for as long as its holder gives signs of life.

Any process may take over a lease whose holder is dead or was silent for too long. So a holder checks its leases before it writes
anywhere below them: `LEASES` lists them by place, the bucket and the key of the store, whatever URL it was opened by.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import psutil
from zarr.core.sync import sync

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.store.locks import holder_text

RENEW_SECONDS = 15.0
# A holder starts no write later than half of this after its last sign, and obstore ends a write within the other half (15 s of
# retries, at most 15 s before the last of them, 30 s for that one): nothing arrives once another process may have the lease.
LEASE_SECONDS = 120.0

Version = Mapping[str, str] | None  # which version of an object was read (its ETag); None if there was no object


@dataclass(frozen=True)
class Sign:
    """A holder's sign of life, as the lease's object stores it in JSON. `time` is in seconds since 1970 by the holder's clock."""

    nonce: str
    text: str
    machine: str
    pid: int
    time: float

    @classmethod
    def from_json(cls, data: bytes) -> "Sign":
        """The sign in an object. Raises KeyError or ValueError for anything else."""
        found = json.loads(data)
        return cls(**{each.name: found[each.name] for each in fields(cls)})

    def as_json(self) -> bytes:
        """The content of the object."""
        return json.dumps(asdict(self)).encode()

    def is_dead(self) -> bool:
        """Whether the holder's process has ended, or its last sign is older than `LEASE_SECONDS`."""
        if self.machine == machine() and not psutil.pid_exists(int(self.pid)):
            return True
        return time.time() - float(self.time) > LEASE_SECONDS


class LeaseObjects(Protocol):
    """The methods that a lease needs of the place that stores it."""

    async def read_lease(self, key: str) -> tuple[Sign | None, Version]:
        """The last sign of a lease's holder, and the version of the object that it was read from."""

    async def replace_lease(self, key: str, sign: Sign, version: Version) -> None:
        """Write a sign, unless the object is no longer of this version."""

    async def delete(self, key: str) -> None:
        """Remove an object."""


class Lease:
    """The object `key` among the leases of a place, whether this process holds it or wants to."""

    def __init__(self, objects: LeaseObjects, key: str) -> None:
        self.lost = False
        self._objects, self._key, self._nonce = objects, key, uuid.uuid4().hex
        self._guard = threading.Lock()
        self._renewed = 0.0
        self._found: Sign | None = None
        self._version: Version = None

    def holder(self) -> str | None:
        """The text of the process that has the lease and may be alive; None if the lease is free."""
        self._found, self._version = sync(self._objects.read_lease(self._key))
        if self._found is None or self._found.is_dead():
            return None
        return f"{self._found.text} (if it was killed, the store is free {LEASE_SECONDS:.0f} s after its last sign)"

    def acquire(self) -> str | None:
        """Take the lease. Returns the holder's text if another process has it, None if this one has it now."""
        if holder := self.holder():
            return holder
        if self._found and self._found.machine != machine():
            time.sleep(RENEW_SECONDS * 4 / 3)  # clocks differ: a holder that is alive after all renews its lease in this time
        self.lost = False
        self.renew()
        return "a process that was faster" if self.lost else None

    def is_overdue(self) -> bool:
        """Whether the last sign is so old that a write needs a new one first."""
        return time.time() - self._renewed > LEASE_SECONDS / 2

    def renew(self) -> None:
        """Give a sign, unless another process has the lease by now; a lease that is lost is never taken back."""
        with self._guard:
            if self.lost:
                return
            sign = Sign(nonce=self._nonce, text=holder_text(), machine=machine(), pid=os.getpid(), time=time.time())
            sync(self._objects.replace_lease(self._key, sign, self._version))
            # Always read it back: a put that was tried twice may have failed against itself.
            found, self._version = sync(self._objects.read_lease(self._key))
            self.lost = found is None or found.nonce != self._nonce
            self._renewed = float(found.time) if found and not self.lost else 0.0

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Give signs every `RENEW_SECONDS` until the block ends, then give the lease back."""
        stop = threading.Event()

        def _renew() -> None:
            while not self.lost and not stop.wait(RENEW_SECONDS):
                with contextlib.suppress(ResourceError):  # it is tried again, and the next write fails if that is too late
                    self.renew()

        thread = threading.Thread(target=_renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(ResourceError):  # a broken network must not hide what went wrong before
                found, _ = sync(self._objects.read_lease(self._key))
                if found and found.nonce == self._nonce:
                    sync(self._objects.delete(self._key))


LEASES: defaultdict[str, list[Lease]] = defaultdict(list)  # those that this process holds on each place


def leases_on(place: str) -> list[Lease]:
    """The leases that this process holds on a place, or on one that it is inside of: a write there needs all of them."""
    return [lease for held, leases in tuple(LEASES.items()) if f"{place}/".startswith(f"{held}/") for lease in tuple(leases)]


def machine() -> str:
    """A name of the place where a process id means one process: containers may share a host's name, but not its process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # only Linux has them
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
