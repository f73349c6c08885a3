"""Where recorded tensors go: `FeatureSink` stores every vector, `MomentSink` adds them up."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace.moments import SecondMoments, fold
from nullbooth_cli.store import STORED_DTYPES, PartialSums, Store, pack_sums
from nullbooth_cli.store.background import Writer
from nullbooth_cli.tensors import pack


class Sink(Protocol):
    """Where the recorded tensors of a unit go."""

    dtype: str | None  # what values must fit, or None for what the model gives

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Take `[B, L, D]`, on the model's device; keep a copy of what is kept."""

    def due(self) -> bool:
        """Whether finished units should be made durable now."""

    def checkpoint(self, units: Sequence[int]) -> None:
        """Write all that was received, which includes these units whole."""


TOGETHER_BYTES = 4 << 20


def features_nbytes(sites: Sequence[Site], num_steps: int, num_prompts: int, dtype: str) -> int:
    """Bytes that the features of so many prompts take, without compression."""
    item = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    return sum(s.num_recorded(num_steps) * num_prompts * s.num_tokens * s.dim * item for s in sites)


class FeatureSink:
    """Stores every vector, in chunks that threads write beside the model. Memory: a chunk of each site, and what waits."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store, self._writer = store, writer
        self.dtype: str | None = store.layout.dtype
        self._block_of = {site: {t: block for block in store.blocks(site) for t in block} for site in store.sites}
        self._begun: dict[Site, list[Callable[[], NDArray[Any]]]] = {}
        self._waiting: list[Callable[[], None]] = []
        self._waiting_bytes = 0

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        assert self.dtype is not None
        begun, block = self._begun.setdefault(site, []), self._block_of[site][step]
        begun.append(pack(values, self.dtype))
        if len(begun) == len(block):
            del self._begun[site]
            self._waiting.append(lambda: self._store.features.write(site, block, rows, np.stack([host() for host in begun])))
            self._waiting_bytes += len(block) * values.numel() * getattr(torch, self.dtype).itemsize
        # Small chunks go together: on a CPU each time a thread wakes up, the model's own threads wait for each other.
        if self._waiting_bytes >= TOGETHER_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        together, nbytes = self._waiting, self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        self._writer.submit(nbytes, lambda: [write() for write in together])

    def due(self) -> bool:
        return True

    def checkpoint(self, units: Sequence[int]) -> None:
        self._hand_over()
        self._writer.drain()


CHECKPOINT_SHARE = 0.05  # of the running time, for writing what is folded so far


class MomentSink:
    """Folds what is recorded straight into moments: one process's part of them, nothing else on disk.

    Memory: 8 D (D + 1) bytes for each site and timestep, on `device`. A checkpoint writes all of it, so they come as often as
    `CHECKPOINT_SHARE` of the running time allows; a kill loses what came after the last one, and nothing is counted twice.
    """

    dtype: str | None = None

    def __init__(self, part: PartialSums, sites: Sequence[Site], num_steps: int, device: torch.device, accumulate: str) -> None:
        self._part = part
        self._moments = {site: SecondMoments(site.num_recorded(num_steps), site.dim, device, accumulate) for site in sites}
        self._units = set(part.units)
        for site in sites if self._units else ():
            self._moments[site].add(part.read(site))
        self._last, self._cost = time.monotonic(), 0.0

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        fold(self._moments[site], site, values.flatten(0, 1)[None], step)

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._cost / CHECKPOINT_SHARE

    def checkpoint(self, units: Sequence[int]) -> None:
        started = time.monotonic()
        self._units |= set(units)
        packed = ((site, [pack_sums(sums) for sums in moments.sums()]) for site, moments in self._moments.items())
        self._part.checkpoint(packed, self._units)
        self._last = time.monotonic()
        self._cost = self._last - started
