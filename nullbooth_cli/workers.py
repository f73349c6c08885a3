"""Who does which units: one process alone, the processes of a launcher, or one shard of many independent jobs.

- Alone: all units, in order.
- Launched (`accelerate launch`, torchrun): processes draw tickets from the launcher's rendezvous store, one unit at a time, so a
  slow card does not hold the others back. Process 0 prepares and decides; what it decided reaches the others as a value.
- A shard k of n: every n-th unit, without any communication. The store is where shards meet; a lock is held while one prepares.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nullbooth_cli.errors import ConfigError, StageError

POLL_SECONDS = 0.2
LONGEST_STAGE = timedelta(days=30)


class OtherProcessFailed(StageError):
    """Another process of the launch stopped with an error, which it has told itself."""

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

    @property
    def part(self) -> str:
        """A name that no process running at the same time has."""
        return f"{self.shard or Shard(1, 1)}.{self.rank}"

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
        """Report items that are done; returns how many all processes have done since the last `agree`."""
        self._done = getattr(self, "_done", 0) + done
        return self._done

    def finish(self) -> Iterator[int]:
        """Wait for the others; process 0 yields how many items are done meanwhile."""
        self._done = 0
        yield from ()


class Launched(Workers):
    """One of the processes of a launcher. No collective is used: a process that dies cannot make the others hang in one."""

    def __init__(self, shard: Shard | None = None, preparing: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        super().__init__(shard, preparing)
        import torch
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        # Without cpu=True on a machine without CUDA every process believes that it is alone.
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_STAGE)
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

    def agree(self, decide: Callable[[], Any]) -> Any:
        self._round += 1
        key = self._key("decision")
        if self.rank == 0:
            decision = super().agree(decide)
            self._keys.set(key, json.dumps(decision))
            return decision
        while not self._keys.check([key]):
            self._check_others()
            time.sleep(POLL_SECONDS)
        return json.loads(self._keys.get(key))

    def share(self, num_items: int) -> Iterator[int]:
        while (ticket := self._keys.add(self._key("ticket"), 1) - 1) < num_items:
            yield ticket

    def count(self, done: int) -> int:
        return int(self._keys.add(self._key("done"), done))

    def finish(self) -> Iterator[int]:
        finished = self._key("finished")
        self._keys.add(finished, 1)
        while self._keys.add(finished, 0) < self.size:
            self._check_others()
            if self.rank == 0:
                yield self.count(0)
            time.sleep(POLL_SECONDS)

    def close(self, failed: bool) -> None:
        """Leave the launch; the others learn whether this process failed."""
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

    def _check_others(self) -> None:
        try:
            failed = self._keys.check(["failed"])
        except RuntimeError as error:
            raise OtherProcessFailed from error
        if failed:
            raise OtherProcessFailed


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
    except BaseException:
        workers.close(failed=True)
        raise
    workers.close(failed=False)
