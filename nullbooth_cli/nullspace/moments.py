"""Second moments: sums of x x^T over vectors, exact in float64, or from below as factors with a known error.

A second moment is the mean of x x^T about zero, not the covariance: P K0 = 0 needs the mean direction to count as preserved. A
mean-centred matrix puts that direction into its "null space" (docs/explanation/mathematics.md has figures). `sum_x` is stored
beside `sum_xxT`, so one pass gives both.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from nullbooth_cli.datatypes import WHOLE, AnySums, FactoredSums, Factoring, Site, Sums
from nullbooth_cli.nullspace.factored import reduction
from nullbooth_cli.tensors import full_float32

# On the CPU, x^T x of at least SYMMETRIC_DIM columns is computed in STRIPS strips of rows, each from the diagonal on: 9/16 of the
# operations. (numpy would use the symmetry by itself, but its threads and torch's wait for each other.)
SYMMETRIC_DIM, STRIPS = 192, 8
# On the CPU, as many small timesteps as fit its cache are multiplied as one batch: threads then do not wait for each other.
CACHED_BYTES = 2 << 20


class SecondMoments:
    """Sums of vectors of `dim` values for each of `num_steps` timesteps: sum_xxT `[T, D, D]`, sum_x `[T, D]`, count `[T]`.

    The sums are float64. `accumulate` "float64" multiplies in float64; "float32" multiplies each chunk in float32 (TF32 off) and
    sums the chunks in float64: eigenvalues below about 1e-7 of the largest are then noise. Products are formed on the device of
    the vectors; the sums stay on `device`. Memory: 8 D (D + 1) bytes for each timestep. Cost of `update`: 2 T N D^2 operations.
    """

    def __init__(self, num_steps: int, dim: int, device: torch.device | str = "cpu", accumulate: str = "float64") -> None:
        # Only the upper triangles are summed; values below the diagonals are arbitrary.
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
            with full_float32(group.device):
                for i in range(0, dim, strip):
                    total, rows, columns = self._upper[steps, i : i + strip, i:], group[..., i : i + strip].mT, group[..., i:]
                    if group.dtype == total.dtype and group.device == total.device:
                        total.baddbmm_(rows, columns)
                    else:
                        total += (rows @ columns).to(total.device)
            self.sum_x[steps] += group.sum(1, dtype=torch.float64).to(self.sum_x.device)
        self.count[first : first + num_steps] += n

    def add(self, sums: Iterable[AnySums]) -> None:
        """Add the sums of other vectors, those of all timesteps."""
        every = [of_step for of_step in sums if isinstance(of_step, Sums)]
        self._upper += torch.from_numpy(np.stack([of_step.sum_xxt for of_step in every])).to(self._upper.device)
        self.sum_x += torch.from_numpy(np.stack([of_step.sum_x for of_step in every])).to(self.sum_x.device)
        self.count += [of_step.count for of_step in every]

    def sums(self) -> Sequence[Sums]:
        """The sums of each timestep, in host memory."""
        of_steps = zip(self.sum_xxt.cpu().numpy(), self.sum_x.cpu().numpy(), self.count.tolist(), strict=True)
        return [Sums(*of_step) for of_step in of_steps]


class FactoredMoments:
    """The same as factors of R = `rank` rows (`nullspace.factored`), of which vectors are made whenever R of them wait.

    Products of `accumulate` "float32" have a noise floor as above. Memory: 16 R D bytes for each timestep. Cost of `update`:
    about 12 T N R D + 72 T N R^2 operations.
    """

    def __init__(
        self, num_steps: int, dim: int, rank: int, device: torch.device | str = "cpu", accumulate: str = "float64"
    ) -> None:
        self._rows = torch.zeros(num_steps, 2 * rank, dim, dtype=torch.float64, device=device)
        self._used = [0] * num_steps
        self.sum_x = torch.zeros(num_steps, dim, dtype=torch.float64, device=device)
        self.count = np.zeros(num_steps, np.int64)
        self._trace, self._delta = np.zeros(num_steps), np.zeros(num_steps)
        self._dtype = getattr(torch, accumulate)

    @property
    def _rank(self) -> int:
        return self._rows.shape[1] // 2

    def update(self, x: torch.Tensor, first: int = 0) -> None:
        """Add vectors, `[S, N, D]` of any floating dtype, of S timesteps from the `first` on."""
        for step, vectors in enumerate(x.to(self._rows), start=first):
            self.sum_x[step] += vectors.sum(0)
            self._trace[step] += float(vectors.square().sum())
            self.count[step] += len(vectors)
            self._append(step, vectors)

    def add(self, sums: Iterable[AnySums]) -> None:
        """Add the sums of other vectors, those of all timesteps."""
        for step, of_step in enumerate(sums):
            assert isinstance(of_step, FactoredSums)
            self.sum_x[step] += torch.from_numpy(of_step.sum_x).to(self.sum_x)
            self._trace[step] += of_step.trace
            self._delta[step] += of_step.delta
            self.count[step] += of_step.count
            self._append(step, torch.from_numpy(of_step.factor).to(self._rows))

    def sums(self) -> Sequence[FactoredSums]:
        """The sums of each timestep, in host memory; those that are summed further keep the vectors that wait."""
        found = []
        for step, used in enumerate(self._used):
            factor, delta = self._reduced(self._rows[step, :used])
            sums = factor.cpu().numpy(), self.sum_x[step].cpu().numpy(), int(self.count[step])
            found.append(FactoredSums(*sums, trace=float(self._trace[step]), delta=float(self._delta[step]) + delta))
        return found

    def _append(self, step: int, vectors: torch.Tensor) -> None:
        rows = self._rows[step]
        while len(vectors):
            if self._used[step] == len(rows):
                factor, delta = self._reduced(rows)
                rows[: self._rank] = factor
                self._used[step], self._delta[step] = self._rank, self._delta[step] + delta
            start = self._used[step]
            now, vectors = vectors.split([min(len(vectors), len(rows) - start), max(0, len(vectors) - len(rows) + start)])
            rows[start : start + len(now)] = now
            self._used[step] += len(now)

    def _reduced(self, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """`nullspace.factored.reduced` on the device of the rows; only their products leave it."""
        if len(rows) <= self._rank:
            return torch.cat([rows, rows.new_zeros(self._rank - len(rows), rows.shape[1])]), 0.0
        multiplied = rows.to(self._dtype)
        with full_float32(rows.device):
            turn, delta = reduction((multiplied @ multiplied.mT).double().cpu().numpy(), self._rank)
            return (torch.from_numpy(turn).to(multiplied) @ multiplied).double(), delta


Summing = SecondMoments | FactoredMoments


def summing(num_steps: int, dim: int, rows: int, *, device: torch.device | str = "cpu", accumulate: str = "float64") -> Summing:
    """What sums the vectors of a site: whole moments where `rows` is D, else factors of so many rows (see `Factoring.rows`)."""
    if rows == dim:
        return SecondMoments(num_steps, dim, device, accumulate)
    return FactoredMoments(num_steps, dim, rows, device=device, accumulate=accumulate)


def fold(moments: Summing, site: Site, x: torch.Tensor, first: int = 0) -> None:
    """Add the vectors that a site recorded, `[S, N, D]`, without the padding of prompts, which is NaN (see `Site.masked`)."""
    if not site.masked:
        moments.update(x, first)
        return
    for step, of_step in enumerate(x, start=first):
        moments.update(of_step[~of_step[:, 0].isnan()][None], step)


def sums_nbytes(sites: Sequence[Site], num_steps: int, factoring: Factoring = WHOLE, *, in_memory: bool = False) -> int:
    """Bytes of the stored moments of all sites and timesteps. Partial sums need 8 D bytes more for each count.

    `in_memory` are those while vectors are added: twice as many for factors.
    """

    def values(site: Site) -> int:
        rows = factoring.rows(site.dim)
        if rows == site.dim:
            return site.dim * (site.dim + 1) + 1
        return site.dim * ((2 if in_memory else 1) * rows + 1) + 3

    return sum(site.num_recorded(num_steps) * 8 * values(site) for site in sites)
