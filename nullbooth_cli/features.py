"""Stage collect: runs the model over the prompts and appends what its cross-attention projections receive to the store.

1. `find_sites()` runs one prompt for two steps and looks which projections share a tensor, and which tensors ignore the timestep.
2. `collect()` then runs the missing units, one batch of prompts over the whole schedule each, and writes one chunk per site
   and step. A unit counts once all of it is durable; an interrupted one is done again.

Cost: bytes per prompt = sum over sites of T * L * D * itemsize (T = 1 where the timestep plays no part).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.denoise import DenoisingPath, denoise
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import denoiser_of
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.sites import Projection, Shared, Watch, group_shared
from nullbooth_cli.store import STORED_DTYPES, Site, Store

MAX_PENDING_WRITES = 64


class _Enough(Exception):
    """Ends a denoising path early, from inside a hook."""


class Writer:
    """Runs writes in one thread beside the model, at most `MAX_PENDING_WRITES` of them waiting. `drain()` before a commit.

    A failed write is raised by the next `submit` or `drain`, as its own error.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._room = threading.Semaphore(MAX_PENDING_WRITES)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()
        self._room.acquire()
        future = self._pool.submit(write, *arguments)
        future.add_done_callback(lambda _: self._room.release())
        self._pending.append(future)

    def drain(self) -> None:
        """Return when everything submitted is written."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()


def find_sites(
    pipe: Any, path: DenoisingPath, projections: tuple[Projection, ...], side: str, branches: str, prompt: Prompt
) -> tuple[tuple[Site, ...], dict[Projection, Site]]:
    """(the recordings to make, the recording of each projection), found by running the first two steps of one prompt."""
    forwards: list[list[tuple[Projection, torch.Tensor]]] = []

    def receive(projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        if forward == len(forwards):
            forwards.append([])
        forwards[forward].append((projection, tensor))

    def after(forward: int) -> None:
        if forward == 1:
            raise _Enough

    try:
        with Watch(denoiser_of(pipe), projections, side, receive, after):
            denoise(pipe, path, [prompt], 0)
    except _Enough:
        pass
    owners = {}
    for shared in group_shared(forwards):
        site = _site_of(shared, side, branches)
        owners.update(dict.fromkeys(shared.projections, site))
    order = {projection: i for i, projection in enumerate(projections)}
    return tuple(dict.fromkeys(owners[p] for p in sorted(owners, key=order.__getitem__))), owners


def _site_of(shared: Shared, side: str, branches: str) -> Site:
    first = shared.projections[0]
    _, num_tokens, dim = split_branches(shared.example, 1, branches).shape
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


def pack(tensor: torch.Tensor, dtype: str) -> NDArray[Any]:
    """A copy in the stored dtype on the host; bfloat16 becomes its uint16 bits."""
    host = tensor.to(device="cpu", dtype=getattr(torch, dtype), copy=True)
    return (host.view(torch.uint16) if dtype == "bfloat16" else host).numpy()


def unpack(values: NDArray[Any], dtype: str) -> torch.Tensor:
    """The inverse of `pack`."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def features_nbytes(sites: Sequence[Site], num_steps: int, num_prompts: int, dtype: str) -> int:
    """Bytes that the features of so many prompts take, without compression."""
    item = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    return sum(s.num_recorded(num_steps) * num_prompts * s.num_tokens * s.dim * item for s in sites)


def collect(
    store: Store,
    pipe: Any,
    path: DenoisingPath,
    prompts: tuple[Prompt, ...],
    owners: dict[Projection, Site],
    branches: str,
    units: Sequence[int],
) -> Iterator[int]:
    """Run the given units and yield each once it is durable.

    Raises ConfigError for a hook that misfires, a value that is not finite (named: prompt, layer, timestep), a tensor that was
    shared or timestep-free in the first two steps and is not any more.
    """
    batch_size, dtype = store.feature_layout()
    with Writer() as writer:
        for unit in units:
            first = unit * batch_size

            def keep(site: Site, step: int, values: NDArray[Any], unit: int = unit) -> None:
                writer.submit(store.write_features, site, step, unit, values)

            recorder = _Recorder(path, prompts[first : first + batch_size], owners, branches, dtype, keep)
            with Watch(denoiser_of(pipe), tuple(owners), next(iter(owners.values())).side, recorder.receive):
                denoise(pipe, path, recorder.prompts, first)
            if recorder.num_forwards != len(path.steps):
                raise ConfigError(
                    f"the pipeline ran {recorder.num_forwards} forwards for {len(path.steps)} steps",
                    "this pipeline skips steps; it cannot be recorded",
                )
            writer.drain()
            store.commit("collect", unit)
            yield unit


class _Recorder:
    """Checks the tensors of one unit as they are seen, and hands a copy of each recording to `keep`."""

    def __init__(
        self,
        path: DenoisingPath,
        prompts: tuple[Prompt, ...],
        owners: dict[Projection, Site],
        branches: str,
        dtype: str,
        keep: Callable[[Site, int, NDArray[Any]], None],
    ) -> None:
        self.prompts, self.num_forwards = prompts, 0
        self._path, self._owners, self._branches, self._dtype, self._keep = path, owners, branches, dtype, keep
        self._current: dict[Site, torch.Tensor] = {}
        self._constant: dict[Site, torch.Tensor] = {}

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
            if not torch.equal(self._constant[site], tensor):
                raise ConfigError(f"{projection} changes with the timestep after all", "this model's sharing changes on the way")
            return
        if site.timestep_free:
            self._constant[site] = tensor
        self._write(site, forward, tensor)

    def _write(self, site: Site, forward: int, tensor: torch.Tensor) -> None:
        values = split_branches(tensor, len(self.prompts), self._branches)
        stored = values.to(getattr(torch, self._dtype))
        if not torch.isfinite(stored).all():
            bad = torch.isfinite(stored).flatten(1).all(1).logical_not().nonzero()[0].item()
            step = self._path.steps[forward]
            where = (
                f"prompt '{self.prompts[int(bad)].text}', layer {site.layer}, feature {site.feature}, timestep {step.timestep:g}"
            )
            if torch.isfinite(values).all():
                raise ConfigError(
                    f"a value does not fit {self._dtype}: {where}", "set collect.feature_dtype to bfloat16 or float32"
                )
            raise ConfigError(f"a value is not finite: {where}", "the model itself gave it; try dtype: float32")
        self._keep(site, forward, pack(stored, self._dtype))
