"""Second moments, and stage covariance, which reduces the stored features to them.

A second moment is the mean of x x^T about zero, not the covariance: P K0 = 0 needs the mean direction to count as known. A
mean-centred matrix puts that direction into its "null space" (leakage 0.31 measured, against 1e-15). `sum_x` is kept beside
`sum_xxT`, so both can be read from one pass.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.features import unpack
from nullbooth_cli.store import Site, Store

T = TypeVar("T")
READ_AHEAD = 4


class SecondMoment:
    """Sums of vectors of `dim` values: sum_xxT `[D, D]`, sum_x `[D]`, both float64, and count.

    `accumulate` "float64" multiplies in float64; "float32" multiplies each chunk in float32 (TF32 off) and sums the chunks in
    float64: eigenvalues below about 1e-7 of the largest are then noise. Cost of `update`: 2 N D^2 operations.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu", accumulate: str = "float64") -> None:
        self.sum_xxt = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.sum_x = torch.zeros(dim, dtype=torch.float64, device=device)
        self.count = 0
        self._dtype = getattr(torch, accumulate)

    def update(self, x: torch.Tensor) -> None:
        """Add vectors, `[N, D]` of any floating dtype, on the moment's device."""
        x = x.to(self._dtype)
        if x.dtype == torch.float64:
            self.sum_xxt.addmm_(x.T, x)
        else:
            allowed = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = False
            try:
                self.sum_xxt += x.T @ x
            finally:
                torch.backends.cuda.matmul.allow_tf32 = allowed
        self.sum_x += x.sum(0, dtype=torch.float64)
        self.count += x.shape[0]


def second_moment(
    sum_xxt: NDArray[np.float64], sum_x: NDArray[np.float64], count: int, *, centred: bool = False
) -> NDArray[np.float64]:
    """`[D, D]` float64, exactly symmetric: sum_xxT / count, less the outer square of the mean if `centred`."""
    moment = sum_xxt / count
    if centred:
        moment = moment - np.outer(sum_x / count, sum_x / count)
    return np.asarray((moment + moment.T) / 2)


def read_ahead(read: Callable[[int], T], items: Iterable[int], depth: int = READ_AHEAD) -> Iterator[T]:
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


def covariance_units(sites: Sequence[Site], num_steps: int) -> list[tuple[Site, int]]:
    """The units of stage covariance, in order: one per site and recorded timestep."""
    return [(site, t) for site in sites for t in range(site.num_recorded(num_steps))]


def covariance(
    store: Store, device: torch.device, accumulate: str, num_chunks: int, units: Sequence[tuple[int, Site, int]]
) -> Iterator[tuple[int, Site, int]]:
    """Reduce the features of the given units (number, site, timestep index) and yield each once it is durable."""
    _, dtype = store.feature_layout()
    for unit, site, step in units:
        moment = SecondMoment(site.dim, device, accumulate)

        def read(chunk: int, site: Site = site, step: int = step) -> NDArray[Any]:
            return store.read_features(site, step, chunk)

        for values in read_ahead(read, range(num_chunks)):
            moment.update(unpack(values, dtype).flatten(0, 1).to(device))
        store.write_moment(site, step, moment.sum_xxt.cpu().numpy(), moment.sum_x.cpu().numpy(), moment.count)
        store.commit("covariance", unit)
        yield unit, site, step


def pooled(store: Store, site: Site, num_steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """(sum_xxT, sum_x, count) of a site over all its recorded timesteps: what protects a weight that all of them share."""
    sum_xxt, sum_x, count = np.zeros((site.dim, site.dim)), np.zeros(site.dim), 0
    for t in range(site.num_recorded(num_steps)):
        of_xxt, of_x, of_count = store.read_moment(site, t)
        sum_xxt, sum_x, count = sum_xxt + of_xxt, sum_x + of_x, count + of_count
    return sum_xxt, sum_x, count
