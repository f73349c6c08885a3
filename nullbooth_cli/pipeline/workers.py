"""The units of each process: of a process alone, of a process of a launch, or of a shard.

- Alone: all units, in order.
- Launched (torchrun, `accelerate launch`): of the units that are left, process r of n does every n-th, starting with the r-th.
- Shard K of N: the units whose number modulo N is K - 1. Shards exchange no messages: they only share the store.
- A launch that is a shard divides the units of that shard.

The processes of a launch meet in the key-value store that the launcher's environment names (`torch.distributed.rendezvous`).
The nullbooth store cannot replace it: nothing in it distinguishes this launch from the one before, so with `force` or `repair`
every process would prepare a stage anew. No collective is used: a waiting collective can be neither interrupted nor left.
A process that waits for others checks whether they still hold their locks, and ends when one of them does not.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from nullbooth_cli.errors import ConfigError, StageError

POLL_SECONDS = 0.2
START_SECONDS = 600.0  # for all processes of a launch to start
PROBE_SECONDS = 5.0  # between two checks of another process's lock; each is a request to a remote store
LEAVE_SECONDS = 30.0  # process 0, which may hold the rendezvous, waits this long for the others to read it
ENVIRONMENT = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Decision = TypeVar("Decision")
Answer = TypeVar("Answer")


class OtherProcessFailed(StageError):
    """Another process of the launch ended before its units were done."""

    def __init__(self, rank: int) -> None:
        super().__init__(
            f"process {rank} of this launch failed or was stopped: its units are not done",
            "read that process's own message, then run the same command again: finished units stay",
        )


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count` parts."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `K/N` names. Raises ConfigError for any other text, and unless 1 <= K <= N."""
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"{text} is not a shard", "write the shard as K/N with K from 1 to N, such as 3/16")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"


class Workers:
    """One process alone, or one shard; `Launched` is one of several processes."""

    rank, size = 0, 1
    device: str | None = None  # of this process, where the launcher gives each its own

    def __init__(self, shard: Shard | None = None, preparing: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        self.shard = shard
        self._preparing = preparing or contextlib.nullcontext
        self._done = 0

    @property
    def name(self) -> str:
        """A name that no process running at the same time has."""
        return f"{self.shard or Shard(1, 1)}.{self.rank}"

    def lock_of(self, rank: int) -> str:
        """The name of the lock that a process of this launch holds: that of the store, of its shard, or one of its own.

        If process 0, which holds the store's lock, is killed, the locks of the others keep a later run from starting beside them.
        """
        if rank == 0:
            return str(self.shard or "")
        shard = self.shard or Shard(1, 1)
        return f"{shard.number}.{rank}-of-{shard.count}"

    @property
    def lock(self) -> str:
        """The name of the lock of this process."""
        return self.lock_of(self.rank)

    def has_lock(self) -> None:
        """Tell the others that this process holds its lock: from now on, a free lock means that the process is gone."""

    def agree(self, decide: Callable[[], Decision]) -> Decision:
        """The result of `decide()` (a JSON value), which one process runs for all. Its error stops all of them."""
        with self._preparing():
            return decide()

    def mine(self, units: Sequence[int]) -> list[int]:
        """The units of this shard; all of them without shards."""
        return [unit for unit in units if self.shard is None or unit % self.shard.count == self.shard.number - 1]

    def share(self, num_items: int) -> Iterator[int]:
        """Indices of the items that this process does: every `size`-th, starting with its own rank."""
        yield from range(self.rank, num_items, self.size)

    def count(self, done: int) -> int:
        """Add finished items to the count of all processes in this stage; returns it."""
        self._done += done
        return self._done

    def finish(self) -> Iterator[int]:
        """Wait until every process has finished its items; yields the count of all on process 0 meanwhile.

        Raises OtherProcessFailed if a process ends before that.
        """
        self._done = 0
        yield from ()


class Launched(Workers):
    """One of the processes of a launcher. `is_held(name)` is whether some process holds a lock of the store."""

    def __init__(
        self,
        shard: Shard | None = None,
        preparing: Callable[[], AbstractContextManager[None]] | None = None,
        is_held: Callable[[str], bool] = lambda _: True,
    ) -> None:
        super().__init__(shard, preparing)
        from torch import cuda
        from torch.distributed.rendezvous import rendezvous

        if missing := [name for name in ENVIRONMENT if name not in os.environ]:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set",
                "start the processes with torchrun or accelerate launch, or unset WORLD_SIZE",
            )
        try:
            self._keys, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the processes of this launch do not find each other: {error}",
                "start all of them within ten minutes, on machines that reach MASTER_ADDR at MASTER_PORT",
            ) from error
        if cuda.is_available():
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
        self._is_held = is_held
        self._round, self._started = 0, time.monotonic()
        self._probed: dict[int, float] = {}  # when the lock of each other process was last checked

    def has_lock(self) -> None:
        """As for one process."""
        self._set(f"locked/{self.rank}")

    def agree(self, decide: Callable[[], Decision]) -> Decision:
        """As for one process; process 0 decides."""
        self._round += 1
        key = self._key("decision")
        if self.rank == 0:
            decision = super().agree(decide)
            self._set(key, json.dumps(decision))
            return decision
        for _ in self._until_set({0: key}):
            pass
        decided: Decision = json.loads(self._ask(lambda: self._keys.get(key)))
        return decided

    def count(self, done: int) -> int:
        """As for one process, over all of them; over this one alone once the rendezvous is gone, so it finishes its units."""
        own = super().count(done)
        with contextlib.suppress(OtherProcessFailed):
            return int(self._ask(lambda: self._keys.add(self._key("done"), done)))
        return own

    def finish(self) -> Iterator[int]:
        """As for one process."""
        self._set(self._key(f"finished/{self.rank}"))
        for _ in self._until_set({rank: self._key(f"finished/{rank}") for rank in range(self.size)}):
            if self.rank == 0:
                yield self.count(0)
        if self.rank == 0:
            yield self.count(0)

    def close(self, *, failed: bool) -> None:
        """Leave the launch, and tell the others whether this process failed. Process 0 may hold the rendezvous, so it is last."""
        with contextlib.suppress(OtherProcessFailed):  # no other process is left
            self._set(f"failed/{self.rank}" if failed else f"left/{self.rank}")
            deadline = time.monotonic() + LEAVE_SECONDS
            if self.rank == 0 and not failed:
                for _ in self._until_set({rank: f"left/{rank}" for rank in range(self.size)}):
                    if time.monotonic() > deadline:
                        return

    def _key(self, name: str) -> str:
        return f"{self._round}/{name}"

    def _until_set(self, keys: dict[int, str]) -> Iterator[None]:
        """Yield every `POLL_SECONDS` until each process, by its rank, has set its key. Raises OtherProcessFailed if one ends."""
        while missing := [rank for rank, key in keys.items() if not self._is_set(key)]:
            # A process may have set its key and ended in the meantime, so its key is checked again last.
            if gone := [rank for rank in missing if self._is_gone(rank) and not self._is_set(keys[rank])]:
                raise OtherProcessFailed(gone[0])
            yield
            time.sleep(POLL_SECONDS)

    def _is_gone(self, rank: int) -> bool:
        """Whether a process failed, or has given back its lock, or never took it."""
        if self._is_set(f"failed/{rank}"):
            return True
        now = time.monotonic()
        if now - self._probed.get(rank, 0.0) < PROBE_SECONDS:
            return False
        self._probed[rank] = now
        if not self._is_set(f"locked/{rank}"):
            return now - self._started > START_SECONDS
        return not self._is_held(self.lock_of(rank))

    def _set(self, key: str, value: str = "") -> None:
        self._ask(lambda: self._keys.set(key, value))

    def _is_set(self, key: str) -> bool:
        return bool(self._ask(lambda: self._keys.check([key])))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except RuntimeError as error:  # the rendezvous ends with the process that holds it
            raise OtherProcessFailed(0) from error


@contextlib.contextmanager
def start_workers(
    shard: Shard | None = None,
    preparing: Callable[[], AbstractContextManager[None]] | None = None,
    is_held: Callable[[str], bool] = lambda _: True,
) -> Iterator[Workers]:
    """The workers that this process belongs to, as the launcher's environment says."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not (size.isascii() and size.isdigit()):
        raise ConfigError(f"WORLD_SIZE is {size!r}, not a number of processes", "unset it, or start with torchrun")
    if int(size) <= 1:
        yield Workers(shard, preparing)
        return
    workers = Launched(shard, preparing, is_held)
    try:
        yield workers
    except BaseException:  # interrupts too: the others must learn of them
        workers.close(failed=True)
        raise
    workers.close(failed=False)
