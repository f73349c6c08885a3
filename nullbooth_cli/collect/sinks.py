"""Sinks take recorded tensors: `FeatureSink` stores every vector, `MomentSink` adds them up."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.datatypes import WHOLE, Factoring, Site
from nullbooth_cli.errors import ModelError, Rerun
from nullbooth_cli.nullspace.moments import fold, summing, sums_nbytes
from nullbooth_cli.store import STORED_DTYPES, PartialSums, Store
from nullbooth_cli.store.background import Writer
from nullbooth_cli.tensors import pack, to_host

# Chunks go to the writing threads in groups of this size: whenever one of those threads wakes up, the model's own threads wait.
HAND_OVER_BYTES = 4 << 20
CHECKPOINT_SHARE = 0.05  # of the running time, at most, goes into writing sums; a kill loses the units since the last checkpoint
CHECKPOINT_RATE = 1 << 30  # bytes a second assumed for the first one; on a slower disk it takes more than its share
FIRST_CHECKPOINT = 120.0  # seconds after which the first one comes whatever it costs
# The model waits for these threads. A buffer for copies from a GPU may take twice its bytes.
CHECKPOINT_WRITERS, CHECKPOINT_PENDING = 4, 128 << 20


class Sink(Protocol):
    """Takes the recorded tensors of a unit."""

    dtype: str | None  # that values must fit; None for the model's own

    def lacks(self, unit: int) -> bool:
        """Whether a unit that is about to run must be received."""

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Take `[B, L, D]`, on the model's device, of prompts in these rows; padding is NaN. Copy what is stored."""

    def due(self) -> bool:
        """Whether finished units should be made durable now."""

    def checkpoint(self, units: Sequence[int]) -> None:
        """Write all that was received: everything of these units that it lacked."""


def features_nbytes(sites: Sequence[Site], num_steps: int, num_prompts: int, dtype: str) -> int:
    """Bytes of the features of N prompts in a stored dtype, without compression."""
    item = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    return sum(s.num_recorded(num_steps) * num_prompts * s.num_tokens * s.dim * item for s in sites)


class FeatureSink:
    """Stores every vector, in chunks that threads write beside the model. Memory: one chunk of each site, and those that wait."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store, self._writer = store, writer
        self.dtype: str | None = store.layout.dtype
        self._block_of = {site: {t: block for block in store.blocks(site) for t in block} for site in store.sites}
        self._unfinished: dict[Site, list[Callable[[], NDArray[Any]]]] = {}  # the timesteps received so far of a block
        self._waiting: list[Callable[[], None]] = []
        self._waiting_bytes = 0

    def lacks(self, unit: int) -> bool:
        """Always True: a unit that runs again replaces its chunks."""
        return True

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Start copying values to the host; the last timestep of a block completes a chunk.

        Raises ModelError for more tokens than a site's arrays have room for.
        """
        assert self.dtype is not None
        values = to_length(site, values)
        received, block = self._unfinished.setdefault(site, []), self._block_of[site][step]
        received.append(pack(values, self.dtype))
        if len(received) == len(block):
            del self._unfinished[site]
            self._waiting.append(lambda: self._store.features.write(site, block, rows, np.stack([host() for host in received])))
            self._waiting_bytes += len(block) * values.numel() * getattr(torch, self.dtype).itemsize
        if self._waiting_bytes >= HAND_OVER_BYTES:
            self._hand_over()

    def due(self) -> bool:
        """Always True: chunks are written as soon as they are complete."""
        return True

    def checkpoint(self, units: Sequence[int]) -> None:
        """Wait until every chunk is written."""
        self._hand_over()
        self._writer.drain()

    def _hand_over(self) -> None:
        together, nbytes = self._waiting, self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        self._writer.submit(nbytes, lambda: [write() for write in together])


def to_length(site: Site, values: torch.Tensor) -> torch.Tensor:
    """`[B, num_tokens, D]` of a site's `[B, L, D]`, where padding is NaN: the tokens of each prompt in order, then padding.

    So a prompt's vectors are the same beside a longer prompt and beside a shorter one.
    """
    if site.masked:
        padding = values[..., 0].isnan()
        order = padding.to(torch.uint8).argsort(dim=1, stable=True)
        values = values.gather(1, order[..., None].expand_as(values))
        room = site.num_tokens - values.shape[1]
        if room >= 0 or values[:, room:, 0].isnan().all():
            return torch.nn.functional.pad(values, (0, 0, 0, room), value=torch.nan)
    if values.shape[1] != site.num_tokens:
        raise ModelError(
            f"{site.name} has {values.shape[1]} tokens for these prompts, and its arrays have room for {site.num_tokens}",
            Rerun("collect", force=True, otherwise=", or keep moments alone: they have no lengths"),
        )
    return values


class MomentSink:
    """Adds recorded vectors straight to the partial sums of a process; nothing else goes to disk.

    Memory: 8 D (D + 1) bytes for each site and timestep, 16 R D for a factor, on `device`, and `CHECKPOINT_PENDING` on the host.
    A checkpoint writes all sums, so they come as often as `CHECKPOINT_SHARE` of the running time allows, the first one when its
    bytes, at `CHECKPOINT_RATE`, are that share, or after `FIRST_CHECKPOINT`. A kill loses the units since the last one, and
    nothing is counted twice: a unit that is in the partial sums of any process (`folded` are those of the others) is left out,
    because nothing can be taken out of a sum.
    """

    dtype: str | None = None

    def __init__(
        self,
        partial: PartialSums,
        sites: Sequence[Site],
        num_steps: int,
        *,
        device: torch.device,
        accumulate: str,
        factoring: Factoring = WHOLE,
        folded: Iterable[int] = (),
    ) -> None:
        self._partial = partial
        self._moments = {
            site: summing(site.num_recorded(num_steps), site.dim, factoring.rows(site.dim), device=device, accumulate=accumulate)
            for site in sites
        }
        self._units, self._folded_elsewhere = set(partial.units), frozenset(folded)
        for site in sites if self._units else ():
            self._moments[site].add(partial.read(site))
        estimated = sums_nbytes(sites, num_steps, factoring) / CHECKPOINT_RATE
        self._last, self._wait = time.monotonic(), min(estimated / CHECKPOINT_SHARE, FIRST_CHECKPOINT)

    def lacks(self, unit: int) -> bool:
        """Whether no process has folded the unit."""
        return unit not in self._units and unit not in self._folded_elsewhere

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Add the vectors of a timestep, without padding."""
        fold(self._moments[site], site, values.flatten(0, 1)[None], step)

    def due(self) -> bool:
        """Whether the cost of a checkpoint is a small enough share of the time since the last: what that took, or an estimate."""
        return time.monotonic() - self._last >= self._wait

    def checkpoint(self, units: Sequence[int]) -> None:
        """Write all sums, with the units that are in them; nothing if none of these units was folded."""
        started = time.monotonic()
        folded = {unit for unit in units if self.lacks(unit)}
        if not folded:
            return
        units_now = self._units | folded
        with self._partial.replaced(units_now) as write, Writer(CHECKPOINT_WRITERS, CHECKPOINT_PENDING) as writer:
            for site, moments in self._moments.items():
                for block in self._partial.blocks(site):
                    packed = moments.packed(block)
                    writer.submit(packed.nbytes, _write_packed, write, site, block, to_host(packed))
            writer.drain()
        self._units, self._last = units_now, time.monotonic()
        self._wait = (self._last - started) / CHECKPOINT_SHARE


def _write_packed(
    write: Callable[[Site, range, NDArray[np.float64]], None], site: Site, block: range, host: Callable[[], NDArray[np.float64]]
) -> None:
    write(site, block, host())
