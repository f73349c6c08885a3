"""Second moments, and stage covariance, which reduces the stored features to them.

A second moment is the mean of x x^T about zero, not the covariance: P K0 = 0 needs the mean direction to count as known. A
mean-centred matrix puts that direction into its "null space" (leakage 0.31 measured, against 1e-15). `sum_x` is kept beside
`sum_xxT`, so both can be read from one pass.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from nullbooth_cli.errors import StoreError
from nullbooth_cli.pooling import add_up
from nullbooth_cli.store import Layout, Part, Site, Store, Sums, check_disjoint, pack_sums
from nullbooth_cli.tensors import full_float32, unpack
from nullbooth_cli.writer import Writer

T = TypeVar("T")
U = TypeVar("U")
READ_AHEAD = 4
READ_BYTES = 1 << 20
# On the CPU, x^T x from here on is made of so many strips of rows, each from the diagonal on: 9/16 of the operations. numpy sees
# the symmetry by itself, but its threads and torch's wait for each other: that slowed the model down by a tenth.
SYMMETRIC_DIM, STRIPS = 192, 8
# Small timesteps are multiplied as one batch, which threads share out without waiting for each other; on the CPU as many as stay
# in its cache.
CACHED_BYTES = 2 << 20
STAGED = 1 << 31  # in a cell of covariance: the moments of so many units lie beside the ones in force
CHECKPOINT_SHARE = 0.05  # of the running time, for writing what is folded so far
COMMIT_SECONDS = 1.0


class SecondMoments:
    """Sums of vectors of `dim` values for each of `num_steps` timesteps: sum_xxT `[T, D, D]`, sum_x `[T, D]`, count `[T]`.

    The sums are float64. `accumulate` "float64" multiplies in float64; "float32" multiplies each chunk in float32 (TF32 off) and
    sums the chunks in float64: eigenvalues below about 1e-7 of the largest are then noise. Products are formed where the vectors
    are; the sums stay on `device`. Cost of `update`: 2 T N D^2 operations.
    """

    def __init__(self, num_steps: int, dim: int, device: torch.device | str = "cpu", accumulate: str = "float64") -> None:
        # What is below the diagonals means nothing.
        self._upper = torch.zeros(num_steps, dim, dim, dtype=torch.float64, device=device)
        self.sum_x = torch.zeros(num_steps, dim, dtype=torch.float64, device=device)
        self.count = np.zeros(num_steps, np.int64)
        self._dtype = getattr(torch, accumulate)

    @property
    def sum_xxt(self) -> torch.Tensor:
        """`[T, D, D]` float64, exactly symmetric."""
        return self._upper.triu() + self._upper.triu(1).mT

    def update(self, x: torch.Tensor, first: int = 0) -> None:
        """Add vectors, `[S, N, D]` of any floating dtype, of S timesteps from the `first` on."""
        num_steps, n, dim = x.shape
        on_cpu = x.device.type == "cpu"
        strip = -(-dim // STRIPS) if on_cpu and dim >= SYMMETRIC_DIM else dim
        at_once = max(1, CACHED_BYTES // (n * dim * self._dtype.itemsize)) if on_cpu and n else num_steps
        for start in range(0, num_steps, at_once):
            group = x[start : start + at_once].to(self._dtype)
            steps = slice(first + start, first + start + len(group))
            with full_float32():
                for i in range(0, dim, strip):
                    total, rows, columns = self._upper[steps, i : i + strip, i:], group[..., i : i + strip].mT, group[..., i:]
                    if group.dtype == total.dtype and group.device == total.device:
                        total.baddbmm_(rows, columns)
                    else:
                        total += (rows @ columns).to(total.device)
            self.sum_x[steps] += group.sum(1, dtype=torch.float64).to(self.sum_x.device)
        self.count[first : first + num_steps] += n

    def add(self, sums: Iterable[Sums]) -> None:
        """Add the sums of other vectors, those of all timesteps."""
        sums_xxt, sums_x, counts = map(np.stack, zip(*sums, strict=True))
        self._upper += torch.from_numpy(sums_xxt).to(self._upper.device)
        self.sum_x += torch.from_numpy(sums_x).to(self.sum_x.device)
        self.count += counts

    def sums(self) -> list[Sums]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of each timestep, on the host."""
        return list(zip(self.sum_xxt.cpu().numpy(), self.sum_x.cpu().numpy(), self.count.tolist(), strict=True))


def _fold(moments: SecondMoments, site: Site, x: torch.Tensor, first: int = 0) -> None:
    """Add what a site recorded, `[S, N, D]`, without the tokens that pad a prompt: those are NaN."""
    if not site.masked:
        moments.update(x, first)
        return
    for step, of_step in enumerate(x, start=first):
        moments.update(of_step[~of_step[:, 0].isnan()][None], step)


class MomentSink:
    """Folds what is recorded straight into moments: one process's part of them, nothing else on disk.

    Memory: 8 D (D + 1) bytes for each site and timestep, on `device`. A checkpoint writes all of it, so they come as often as
    `CHECKPOINT_SHARE` of the running time allows; a kill loses what came after the last one, and nothing is counted twice.
    """

    dtype: str | None = None

    def __init__(self, part: Part, sites: Sequence[Site], num_steps: int, device: torch.device, accumulate: str) -> None:
        self._part = part
        self._moments = {site: SecondMoments(site.num_recorded(num_steps), site.dim, device, accumulate) for site in sites}
        self._units = set(part.units)
        for site in sites if self._units else ():
            self._moments[site].add(part.read(site))
        self._last, self._cost = time.monotonic(), 0.0

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        _fold(self._moments[site], site, values.flatten(0, 1)[None], step)

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._cost / CHECKPOINT_SHARE

    def checkpoint(self, units: Sequence[int]) -> None:
        started = time.monotonic()
        self._units |= set(units)
        packed = ((site, [pack_sums(*sums) for sums in moments.sums()]) for site, moments in self._moments.items())
        self._part.checkpoint(packed, self._units)
        self._last = time.monotonic()
        self._cost = self._last - started


def sums_nbytes(sites: Sequence[Site], num_steps: int) -> int:
    """Bytes of the sums of all sites and timesteps, as moments have them; parts have 8 D bytes more for a count."""
    return sum(site.num_recorded(num_steps) * 8 * (site.dim * (site.dim + 1) + 1) for site in sites)


def read_ahead(read: Callable[[U], T], items: Iterable[U], depth: int = READ_AHEAD) -> Iterator[T]:
    """`read(item)` for each item in order, up to `depth` of them running in threads before they are asked for.

    The first failure is raised in its turn; what was started is waited for, never left running.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) >= depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def covariance_units(sites: Sequence[Site], num_steps: int, layout: Layout) -> list[tuple[Site, range]]:
    """The units of stage covariance, in order: one per site and block of timesteps."""
    return [(site, block) for site in sites for block in layout.blocks(site, num_steps)]


Unit = tuple[int, Site, range]


def covariance(store: Store, device: torch.device, accumulate: str, units: Iterable[Unit]) -> Iterator[Unit]:
    """Reduce what was collected to the moments of the given units (number, site, timesteps); yield each once it is durable.

    Features are read once: a unit whose moment covers the first n units of the collection only reads those after them. Where the
    model's run folded the moments already, the parts are added up.
    """
    target = len(store.cells("collect"))
    moments = (
        _from_features(store, device, accumulate, units, target) if store.layout.keep == "features" else _from_parts(store, units)
    )
    finished: list[Unit] = []
    last = time.monotonic()
    with Writer() as writer:
        for unit, sums in moments:
            writer.submit(sum(of_step[0].nbytes for of_step in sums), store.write_moments, *unit[1:], sums)
            finished.append(unit)
            if time.monotonic() - last >= COMMIT_SECONDS:
                yield from _make_durable(store, writer, finished, target)
                finished, last = [], time.monotonic()
        yield from _make_durable(store, writer, finished, target)


def _make_durable(store: Store, writer: Writer, units: list[Unit], target: int) -> list[Unit]:
    writer.drain()
    store.commit("covariance", [number for number, _, _ in units], target)
    return units


def _from_features(
    store: Store, device: torch.device, accumulate: str, units: Iterable[Unit], target: int
) -> Iterator[tuple[Unit, list[Sums]]]:
    dtype, cells = store.layout.dtype, store.cells("covariance")
    live = [unit for unit in range(target) if store.members(unit)]

    def read(item: tuple[Unit, list[int]]) -> tuple[Unit, torch.Tensor | None]:
        unit, group = item
        if not group:
            return unit, None
        # numpy puts them together, in this thread: torch's threads would wait here for those that multiply.
        of_chunks = [store.read_features(*unit[1:], chunk) for chunk in group]
        vectors = unpack(of_chunks[0] if len(group) == 1 else np.concatenate(of_chunks, axis=1), dtype).flatten(1, 2)
        return unit, vectors.pin_memory() if device.type == "cuda" else vectors

    def chunks() -> Iterator[tuple[Unit, list[int]]]:
        """The chunks that each unit lacks, small ones in groups that are worth a turn; and an empty group after them."""
        for unit in units:
            covered = _finish_staged(store, unit, int(cells[unit[0]]))
            cells[unit[0]] = covered
            lacking = live[bisect_left(live, covered) :]
            size = max(1, READ_BYTES // store.chunk_nbytes(unit[1]))
            yield from ((unit, lacking[i : i + size]) for i in range(0, len(lacking), size))
            yield unit, []

    moments: SecondMoments | None = None
    for unit, vectors in read_ahead(read, chunks()):
        number, site, block = unit
        moments = moments or SecondMoments(len(block), site.dim, device, accumulate)
        if vectors is not None:
            _fold(moments, site, vectors.to(device, non_blocking=True))
            continue
        if cells[number]:
            moments.add(store.read_moments(site, block))
            store.stage_moments(site, block, moments.sums())
            store.commit("covariance", number, target | STAGED)
        yield unit, moments.sums()
        moments = None


def _finish_staged(store: Store, unit: Unit, cell: int) -> int:
    """Put staged moments in force if a kill left some. Returns how many units the moments in force cover."""
    number, site, block = unit
    if cell & STAGED:
        cell &= ~STAGED
        store.write_moments(site, block, store.read_staged(site, block))
        store.commit("covariance", number, cell)
    return cell


def _from_parts(store: Store, units: Iterable[Unit]) -> Iterator[tuple[Unit, list[Sums]]]:
    parts = [part for part in store.parts() if part.units]
    check_disjoint(parts)
    folded = {unit for part in parts for unit in part.units}
    missing = [unit for unit in range(len(store.cells("collect"))) if store.members(unit) and unit not in folded]
    if missing:
        raise StoreError(
            f"{store.url}: no part of the moments holds unit {missing[0]} ({len(missing)} units are missing)",
            f"nullbooth collect --repair -s {store.url}",
        )
    last: tuple[Site, list[Sums]] | None = None
    for unit in units:
        _, site, block = unit
        if last is None or last[0] != site:
            last = site, [add_up(sums) for sums in zip(*(part.read(site) for part in parts), strict=True)]
        yield unit, [last[1][t] for t in block]
