"""Stage collect: runs the model over the prompts and records what its cross-attention projections receive.

`collect()` runs the missing units, one batch of prompts over the whole schedule each. Every tensor goes to the sinks that are
wanted: `FeatureSink` stores its vectors, `moments.MomentSink` adds them up. A unit counts once all of it is durable.

Nothing is computed that nobody asked for: the last forward ends at the last wanted projection, and tensors that are an argument
of the denoiser need no forward at all.

Cost of features: bytes per prompt = sum over sites of T * L * D * itemsize (T = 1 where the timestep plays no part).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.denoise import DenoisingPath, denoise
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.events import Interrupts
from nullbooth_cli.model import denoiser_of
from nullbooth_cli.recording import TEXT_ARGUMENT, Found, Recorder, Sink
from nullbooth_cli.sites import Enough, Watch
from nullbooth_cli.store import STORED_DTYPES, Site, Store
from nullbooth_cli.tensors import pack
from nullbooth_cli.writer import Writer

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
            self._waiting.append(lambda: self._store.write_features(site, block, rows, np.stack([host() for host in begun])))
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


def collect(
    store: Store,
    pipe: Any,
    path: DenoisingPath,
    found: Found,
    branches: str,
    units: Iterable[int],
    sinks: Sequence[Sink],
    interrupts: Interrupts,
) -> Iterator[int]:
    """Run the given units and yield each once it is durable.

    Raises ConfigError for a hook that misfires, a value that is not finite (named: prompt, layer, timestep), a tensor that was
    shared or timestep-free in the first two steps and is not any more.
    """
    finished: list[int] = []
    for unit in units:
        recorder = Recorder(path, store.members(unit), found, branches, sinks)
        _run(pipe, path, recorder, found)
        recorder.check()
        finished.append(unit)
        if interrupts.requested or all(sink.due() for sink in sinks):
            yield from _make_durable(store, finished, sinks)
            finished = []
        interrupts.holding = bool(finished)
        if interrupts.requested:
            raise KeyboardInterrupt
    yield from _make_durable(store, finished, sinks)
    interrupts.holding = False
    if interrupts.requested:
        raise KeyboardInterrupt


def _make_durable(store: Store, units: list[int], sinks: Sequence[Sink]) -> list[int]:
    if units:
        for sink in sinks:
            sink.checkpoint(units)
        store.commit("collect", units)
    return units


def forwards_needed(found: Found, num_steps: int) -> int:
    """How many forwards of the denoiser a unit takes: none for what is its argument, one for what no timestep changes."""
    if found.given == set(found.sites):
        return 0
    return 1 if all(site.timestep_free for site in found.sites) else num_steps


def _run(pipe: Any, path: DenoisingPath, recorder: Recorder, found: Found) -> None:
    """Run as much of the denoising path as the recordings need."""
    denoiser, needed = denoiser_of(pipe), forwards_needed(found, len(path.steps))
    if not needed:
        first_of = {site: projection for projection, site in reversed(found.owners.items())}

        def take(_: Any, __: Any, arguments: dict[str, Any]) -> None:
            recorder.begin(arguments)
            for site in found.sites:
                recorder.receive(first_of[site], 0, arguments[TEXT_ARGUMENT])
            raise Enough

        handle = denoiser.register_forward_pre_hook(take, with_kwargs=True)
        try:
            denoise(pipe, path, recorder.members)
        except Enough:
            return
        finally:
            handle.remove()
    else:
        with Watch(denoiser, tuple(found.owners), found.sites[0].side, recorder.receive, needed - 1, recorder.begin) as watch:
            denoise(pipe, path, recorder.members)
        if watch.ended:
            return
    raise ConfigError(
        f"the pipeline ran {recorder.num_forwards} forwards for {len(path.steps)} steps",
        "this pipeline skips steps; it cannot be recorded",
    )
