"""Who does which units: one process alone, the processes of a launcher, or one shard of many independent jobs.

- Alone: all units, in order.
- Launched (`accelerate launch`, torchrun): processes draw tickets from the launcher's rendezvous store, one unit at a time, so a
  slow card does not hold the others back. Process 0 prepares and decides; what it decided reaches the others as a value.
- A shard k of n: every n-th unit, without any communication. The store is where shards meet; a lock is held while one prepares.
"""

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.errors import ConfigError, StageError

POLL_SECONDS = 0.2
BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0  # without a sign of life; a thread gives them, however long a unit takes


class OtherProcessFailed(StageError):
    """Another process of the launch stopped: with an error, which it has told itself, or without a word."""

    def __init__(self) -> None:
        super().__init__("another process of this launch failed", "its own message says why; finished units are kept")


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count` parts."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--shard {text} is not a part of a whole", "write --shard K/N with K from 1 to N, such as 3/16")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"


class Workers:
    """One process alone, or one shard."""

    rank, size = 0, 1
    device: str | None = None

    def __init__(self, shard: Shard | None = None, preparing: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        self.shard = shard
        self._preparing = preparing or contextlib.nullcontext
        self._done = 0

    @property
    def part(self) -> str:
        """A name that no process running at the same time has."""
        return f"{self.shard or Shard(1, 1)}.{self.rank}"

    @property
    def lock(self) -> str:
        """The lock that a process other than the first of its launch holds, so that no later run begins beside it."""
        shard = self.shard or Shard(1, 1)
        return f"{shard.number}.{self.rank}-of-{shard.count}"

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What `decide()` returns (a JSON value), run by one process for all. Its error stops all of them."""
        with self._preparing():
            return decide()

    def mine(self, units: Sequence[int]) -> list[int]:
        """The units that this process or its launch may do."""
        return [unit for unit in units if self.shard is None or unit % self.shard.count == self.shard.number - 1]

    def share(self, num_items: int) -> Iterator[int]:
        """Indices of items that this process does; each index goes to one process."""
        yield from range(num_items)

    def count(self, done: int) -> int:
        """Report items that are done; returns how many all processes have done of the stage."""
        self._done += done
        return self._done

    def finish(self) -> Iterator[int]:
        """Wait for the others; process 0 yields how many items are done meanwhile."""
        self._done = 0
        yield from ()


class Launched(Workers):
    """One of the processes of a launcher. No collective is used: a process that dies cannot make the others hang in one.

    A process that fails says so; one that is killed, or whose machine is gone, is missed after `DEAD_SECONDS`. The others then
    draw no more units, write what they have and end.
    """

    def __init__(self, shard: Shard | None = None, preparing: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        super().__init__(shard, preparing)
        import torch
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        # Without cpu=True on a machine without CUDA every process believes that it is alone.
        with warnings.catch_warnings():
            # It shares out the cores of a machine without CUDA, which is wanted, and says so in every process.
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            self._state = PartialState(cpu=not torch.cuda.is_available())
        wanted = int(os.environ["WORLD_SIZE"])
        if self._state.num_processes != wanted:
            self._state.destroy_process_group()
            raise ConfigError(
                f"WORLD_SIZE is {wanted}, but accelerate sees {self._state.num_processes} process",
                "start it with accelerate launch --multi_gpu --num_processes N, or torchrun --nproc_per_node N",
            )
        self.rank, self.size = self._state.process_index, self._state.num_processes
        if torch.cuda.is_available():
            self.device = f"cuda:{self._state.local_process_index}"
        # The store that every process already talks to: no further port, and it counts tickets.
        self._keys: Any = _get_default_store()
        self._round = 0
        self._looked, self._seen = 0.0, {rank: (0, time.monotonic()) for rank in range(self.size) if rank != self.rank}
        self._ending = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def agree(self, decide: Callable[[], Any]) -> Any:
        self._round += 1
        key = self._key("decision")
        if self.rank == 0:
            decision = super().agree(decide)
            self._ask("set", key, json.dumps(decision))
            return decision
        while not self._ask("check", [key]):
            if self._is_broken():
                raise OtherProcessFailed
            time.sleep(POLL_SECONDS)
        return json.loads(self._ask("get", key))

    def share(self, num_items: int) -> Iterator[int]:
        # Once another failed this one ends as if all were done, which writes what it holds; `finish` then raises.
        while not self._is_broken() and (ticket := self._ask("add", self._key("ticket"), 1) - 1) < num_items:
            yield ticket

    def count(self, done: int) -> int:
        return int(self._ask("add", self._key("done"), done))

    def finish(self) -> Iterator[int]:
        if self._is_broken():
            raise OtherProcessFailed
        finished = self._key("finished")
        self._ask("add", finished, 1)
        while self._ask("add", finished, 0) < self.size:
            if self._is_broken():
                raise OtherProcessFailed
            if self.rank == 0:
                yield self.count(0)
            time.sleep(POLL_SECONDS)
        if self.rank == 0:
            yield self.count(0)

    def close(self, failed: bool) -> None:
        """Leave the launch; the others learn whether this process failed."""
        self._ending.set()
        try:
            if failed:
                self._keys.set("failed", str(self.rank))
            elif self.rank == 0 and self.size > 1:
                # The rendezvous store may live in this process: the others must have read all they need.
                deadline = time.monotonic() + 30
                while self._keys.add("left", 0) < self.size - 1 and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
            else:
                self._keys.add("left", 1)
        except RuntimeError:
            pass  # the rendezvous is gone, and with it everybody who could be told
        self._state.destroy_process_group()

    def _key(self, name: str) -> str:
        return f"nullbooth/{self._round}/{name}"

    def _ask(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self._keys, operation)(*arguments)
        except RuntimeError as error:  # the rendezvous ends with the process that holds it
            raise OtherProcessFailed from error

    def _beat(self) -> None:
        with contextlib.suppress(OtherProcessFailed):
            while not self._ending.wait(BEAT_SECONDS):
                self._ask("add", f"beat/{self.rank}", 1)

    def _is_broken(self) -> bool:
        """Whether another process failed, or gave no sign of life for a while."""
        try:
            return bool(self._ask("check", ["failed"])) or self._is_one_silent()
        except OtherProcessFailed:
            return True

    def _is_one_silent(self) -> bool:
        now = time.monotonic()
        if now - self._looked < BEAT_SECONDS:
            return False
        self._looked = now
        for rank, (beats, since) in self._seen.items():
            found = self._ask("add", f"beat/{rank}", 0)
            self._seen[rank] = (found, now if found != beats else since)
        return any(now - since > DEAD_SECONDS for _, since in self._seen.values())


@contextlib.contextmanager
def start_workers(
    shard: Shard | None = None, preparing: Callable[[], AbstractContextManager[None]] | None = None
) -> Iterator[Workers]:
    """The workers that this process belongs to, as the launcher's environment says."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield Workers(shard, preparing)
        return
    workers = Launched(shard, preparing)
    try:
        yield workers
    except BaseException:  # Ctrl-C as well: the other processes must hear of it
        workers.close(failed=True)
        raise
    workers.close(failed=False)
