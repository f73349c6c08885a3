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
from nullbooth_cli.store import pack_sums
from nullbooth_cli.tensors import full_float32

# On the CPU, x^T x of at least SYMMETRIC_DIM columns is computed in STRIPS strips of rows, each from the diagonal on: 9/16 of the
# operations. numpy does half of them by itself and is faster, but its threads and torch's wait for each other, so it is used only
# where torch has one thread. With fewer vectors than columns, its mirroring of the triangle costs more than it saves.
SYMMETRIC_DIM, STRIPS = 192, 8
NUMPY_DIM = 1024  # numpy's product has to be added afterwards, which costs wider matrices more than it saves
TILE = 256  # edge of the squares in which a triangle is mirrored
# On the CPU, as many vectors as fit the cache are converted at once; those of several small timesteps are multiplied in one go:
# threads then do not wait for each other. With fewer than LEAST_ROWS, sums would be the larger part of what is read and written.
CACHED_BYTES, LEAST_ROWS = 2 << 20, 1024


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
        return self.packed(range(len(self.count)))[:, :-2]

    def packed(self, steps: range) -> torch.Tensor:
        """`[S, D + 2, D]` float64 of S timesteps, new memory on the device of the sums, each as `store.pack_sums` packs it."""
        upper = self._upper[steps.start : steps.stop]
        num_steps, dim = upper.shape[:2]
        made = upper.new_empty(num_steps, dim + 2, dim)
        for i in range(0, dim, TILE):
            end = min(i + TILE, dim)
            square = upper[:, i:end, i:end]
            is_upper = torch.ones(square.shape[1:], dtype=torch.bool, device=square.device).triu()
            made[:, i:end, i:end] = torch.where(is_upper, square, square.mT)
            made[:, i:end, end:] = upper[:, i:end, end:]
            made[:, end:dim, i:end] = upper[:, i:end, end:].mT
        made[:, dim] = self.sum_x[steps.start : steps.stop]
        made[:, dim + 1] = 0.0
        made[:, dim + 1, 0] = torch.from_numpy(self.count[steps.start : steps.stop]).to(made)
        return made

    def update(self, x: torch.Tensor, first: int = 0) -> None:
        """Add vectors, `[S, N, D]` of any floating dtype, of S timesteps from the `first` on. Raises IndexError for others."""
        (num_steps, n, dim), x = x.shape, x.detach()
        if not 0 <= first <= len(self.count) - num_steps:
            raise IndexError(f"timesteps {first} to {first + num_steps - 1} of {len(self.count)}")
        self.count[first : first + num_steps] += n
        if x.device.type != "cpu":
            self._multiply(x.to(self._dtype), first)
            return
        cached = CACHED_BYTES // (dim * self._dtype.itemsize)
        most = max(cached, min(dim, LEAST_ROWS))
        if dim <= min(n, NUMPY_DIM) and self._upper.device.type == "cpu" and torch.get_num_threads() == 1:
            for step in range(num_steps):
                for start in range(0, n, most):
                    self._multiply_by_numpy(x[step, start : start + most].to(self._dtype), first + step)
            return
        at_once = max(1, cached // max(n, 1))
        for start in range(0, num_steps, at_once):
            for part in x[start : start + at_once].split(most, dim=1):
                self._multiply(part.to(self._dtype), first + start)

    def _multiply(self, vectors: torch.Tensor, first: int) -> None:
        num_steps, _, dim = vectors.shape
        steps = slice(first, first + num_steps)
        strip = -(-dim // STRIPS) if vectors.device.type == "cpu" and dim >= SYMMETRIC_DIM else dim
        with full_float32(vectors.device):
            for i in range(0, dim, strip):
                total, rows, columns = self._upper[steps, i : i + strip, i:], vectors[..., i : i + strip].mT, vectors[..., i:]
                if vectors.dtype == total.dtype and vectors.device == total.device:
                    total.baddbmm_(rows, columns)
                else:
                    total += (rows @ columns).to(total.device)
        self.sum_x[steps] += vectors.sum(1, dtype=torch.float64).to(self.sum_x.device)

    def _multiply_by_numpy(self, vectors: torch.Tensor, step: int) -> None:
        matrix = vectors.numpy()
        self._upper.numpy()[step] += matrix.T @ matrix
        self.sum_x.numpy()[step] += vectors.sum(0, dtype=torch.float64).numpy()

    def add(self, sums: Iterable[AnySums]) -> None:
        """Add the sums of other vectors, those of all timesteps."""
        every = [of_step for of_step in sums if isinstance(of_step, Sums)]
        self._upper += torch.from_numpy(np.stack([of_step.sum_xxt for of_step in every])).to(self._upper.device)
        self.sum_x += torch.from_numpy(np.stack([of_step.sum_x for of_step in every])).to(self.sum_x.device)
        self.count += [of_step.count for of_step in every]

    def sums(self) -> Sequence[Sums]:
        """The sums of each timestep, in host memory."""
        packed = self.packed(range(len(self.count))).cpu().numpy()
        return [Sums(of_step[:-2], of_step[-2], count) for of_step, count in zip(packed, self.count.tolist(), strict=True)]


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
        return [self._sums_of(step) for step in range(len(self._used))]

    def packed(self, steps: range) -> torch.Tensor:
        """`[S, R + 2, D]` float64 of S timesteps, in host memory, each as `store.pack_sums` packs it."""
        return torch.from_numpy(np.stack([pack_sums(self._sums_of(step)) for step in steps]))

    def _sums_of(self, step: int) -> FactoredSums:
        factor, delta = self._reduced(self._rows[step, : self._used[step]])
        sums = factor.cpu().numpy(), self.sum_x[step].cpu().numpy(), int(self.count[step])
        return FactoredSums(*sums, trace=float(self._trace[step]), delta=float(self._delta[step]) + delta)

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
