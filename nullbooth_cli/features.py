"""Stage collect: runs the model over the prompts and records what its cross-attention projections receive.

1. `find_sites()` runs one prompt for two steps and looks which projections share a tensor, which tensors ignore the timestep, and
   which are an argument of the denoiser.
2. `collect()` then runs the missing units, one batch of prompts over the whole schedule each. Every tensor goes to the sinks that
   are wanted: `FeatureSink` stores its vectors, `moments.MomentSink` adds them up. A unit counts once all of it is durable.

Nothing is computed that nobody asked for: the last forward ends at the last wanted projection, and tensors that are an argument
of the denoiser need no forward at all.

Cost of features: bytes per prompt = sum over sites of T * L * D * itemsize (T = 1 where the timestep plays no part).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.denoise import DenoisingPath, denoise
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.events import Interrupts
from nullbooth_cli.model import denoiser_of
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.sampling import sample_tokens
from nullbooth_cli.sites import Enough, Projection, Shared, Watch, group_shared
from nullbooth_cli.store import STORED_DTYPES, Site, Store
from nullbooth_cli.tensors import pack
from nullbooth_cli.writer import Writer

TOGETHER_BYTES = 4 << 20
TEXT_ARGUMENT = "encoder_hidden_states"


@dataclass(frozen=True)
class Found:
    """What a probe of the model found: the recordings to make, the recording of each projection, and those that the denoiser
    is given as an argument."""

    sites: tuple[Site, ...]
    owners: dict[Projection, Site]
    given: frozenset[Site]


def find_sites(
    pipe: Any,
    path: DenoisingPath,
    projections: tuple[Projection, ...],
    side: str,
    branches: str,
    prompt: Prompt,
    tokens_per_prompt: int | None = None,
) -> Found:
    """Run the first two steps of one prompt and look which tensor each projection gets."""
    forwards: list[list[tuple[Projection, torch.Tensor]]] = []
    given: list[torch.Tensor | None] = []

    def receive(projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        if forward == len(forwards):
            forwards.append([])
        forwards[forward].append((projection, tensor))

    denoiser = denoiser_of(pipe)
    handle = denoiser.register_forward_pre_hook(
        lambda _, __, arguments: given.append(arguments.get(TEXT_ARGUMENT)), with_kwargs=True
    )
    try:
        with Watch(denoiser, projections, side, receive, last=1):
            denoise(pipe, path, [(0, prompt)])
    finally:
        handle.remove()
    owners, arguments = {}, set()
    for shared in group_shared(forwards):
        site = _site_of(shared, side, branches, tokens_per_prompt)
        owners.update(dict.fromkeys(shared.projections, site))
        if side == "input" and given[0] is not None and shared.timestep_free and shared.example.data_ptr() == given[0].data_ptr():
            arguments.add(site)
    order = {projection: i for i, projection in enumerate(projections)}
    return Found(tuple(dict.fromkeys(owners[p] for p in sorted(owners, key=order.__getitem__))), owners, frozenset(arguments))


def _site_of(shared: Shared, side: str, branches: str, tokens_per_prompt: int | None) -> Site:
    first = shared.projections[0]
    _, num_tokens, dim = split_branches(shared.example, 1, branches).shape
    if tokens_per_prompt is not None and first.feature in ("q", "out"):
        num_tokens = min(num_tokens, tokens_per_prompt)
    return Site(
        first.layer, first.feature, side, tuple(p.weight for p in shared.projections), shared.timestep_free, num_tokens, dim
    )


def split_branches(tensor: torch.Tensor, num_prompts: int, branches: str) -> torch.Tensor:
    """`[rows, L, D]` to one entry a prompt: `[B, 2 L, D]`, the empty prompt's tokens before the prompt's own, or `[B, L, D]`.

    Guided models stack [unconditional; conditional] rows; models without that doubling have one row a prompt.
    """
    rows = tensor.shape[0]
    if rows == num_prompts:
        return tensor
    if rows != 2 * num_prompts:
        raise ConfigError(
            f"a projection saw {rows} rows for {num_prompts} prompts", "this pipeline's batching is not known to nullbooth"
        )
    empty, own = tensor[:num_prompts], tensor[num_prompts:]
    return own if branches == "cond" else torch.cat([empty, own], dim=1)


def features_nbytes(sites: Sequence[Site], num_steps: int, num_prompts: int, dtype: str) -> int:
    """Bytes that the features of so many prompts take, without compression."""
    item = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    return sum(s.num_recorded(num_steps) * num_prompts * s.num_tokens * s.dim * item for s in sites)


class Sink(Protocol):
    """Where the recorded tensors of a unit go."""

    dtype: str | None  # what values must fit, or None for what the model gives

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Take `[B, L, D]`, on the model's device; keep a copy of what is kept."""

    def due(self) -> bool:
        """Whether finished units should be made durable now."""

    def checkpoint(self, units: Sequence[int]) -> None:
        """Write all that was received, which includes these units whole."""


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


def _run(pipe: Any, path: DenoisingPath, recorder: "Recorder", found: Found) -> None:
    """Run as much of the denoising path as the recordings need."""
    denoiser, needed = denoiser_of(pipe), forwards_needed(found, len(path.steps))
    if not needed:
        first_of = {site: projection for projection, site in reversed(found.owners.items())}

        def take(_: Any, __: Any, arguments: dict[str, Any]) -> None:
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
        with Watch(denoiser, tuple(found.owners), found.sites[0].side, recorder.receive, last=needed - 1) as watch:
            denoise(pipe, path, recorder.members)
        if watch.ended:
            return
    raise ConfigError(
        f"the pipeline ran {recorder.num_forwards} forwards for {len(path.steps)} steps",
        "this pipeline skips steps; it cannot be recorded",
    )


class Recorder:
    """Checks the tensors of one unit as they are seen, and hands each recording to the sinks.

    On CUDA nothing here waits for the device: what must hold is noted there, and `check` reads it after the unit.
    """

    def __init__(
        self, path: DenoisingPath, members: list[tuple[int, Prompt]], found: Found, branches: str, sinks: Sequence[Sink]
    ) -> None:
        self.members, self.num_forwards = members, 0
        self._path, self._owners, self._branches, self._sinks = path, found.owners, branches, sinks
        self._rows = [row for row, _ in members]
        self._current: dict[Site, torch.Tensor] = {}
        self._constant: dict[Site, tuple[torch.Tensor, int]] = {}
        self._changed: list[tuple[Projection, torch.Tensor]] = []
        self._largest: list[tuple[Site, int, torch.Tensor]] = []

    def receive(self, projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        site = self._owners[projection]
        if forward == self.num_forwards:
            self._current.clear()
            self.num_forwards += 1
        if site in self._current:
            if self._current[site].data_ptr() != tensor.data_ptr():
                raise ConfigError(
                    f"{projection} no longer shares its tensor with {site.name}", "this model's sharing changes on the way"
                )
            return
        if len(site.weights) > 1:
            self._current[site] = tensor
        if site.timestep_free and forward > 0:
            first, version = self._constant[site]
            if first.data_ptr() != tensor.data_ptr() or first._version != version:
                self._changed.append((projection, (first != tensor).any()))
            return
        if site.timestep_free:
            self._constant[site] = (tensor, tensor._version)
        values = split_branches(tensor, len(self.members), self._branches)
        values = sample_tokens(values, site.num_tokens, self._path.seed, self._rows, forward, site.name)
        # The largest magnitude of each prompt tells it all: NaN outlives amax, and rounding to a dtype keeps the order.
        self._largest.append((site, forward, values.abs().flatten(1).amax(1).float()))
        for sink in self._sinks:
            sink.receive(site, forward, self._rows, values)

    def check(self) -> None:
        """Raise ConfigError for what was seen to be wrong in the unit. Waits for the device once."""
        if self._changed and torch.stack([changed for _, changed in self._changed]).any():
            wrong = next(projection for projection, changed in self._changed if changed)
            raise ConfigError(f"{wrong} changes with the timestep after all", "this model's sharing changes on the way")
        largest = torch.stack([of_prompts for *_, of_prompts in self._largest]).cpu()
        dtypes = list(dict.fromkeys([None, *(sink.dtype for sink in self._sinks)]))
        fitted = [largest if dtype is None else largest.to(getattr(torch, dtype)) for dtype in dtypes]
        finite = torch.stack([torch.isfinite(values) for values in fitted], dim=1)
        if finite.all():
            return
        record, which, member = (int(i) for i in finite.logical_not().nonzero()[0])
        (site, forward, _), dtype = self._largest[record], dtypes[which]
        where = (
            f"prompt '{self.members[member][1].text}', layer {site.layer}, feature {site.feature}, "
            f"timestep {self._path.steps[forward].timestep:g}"
        )
        if dtype is not None:
            raise ConfigError(f"a value does not fit {dtype}: {where}", "set collect.feature_dtype to bfloat16 or float32")
        raise ConfigError(f"a value is not finite: {where}", "the model itself gave it; try dtype: float32")
