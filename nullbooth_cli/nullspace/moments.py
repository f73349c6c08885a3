"""Second moments: sums of x x^T over vectors, exact in float64.

A second moment is the mean of x x^T about zero, not the covariance: P K0 = 0 needs the mean direction to count as preserved. A
mean-centred matrix puts that direction into its "null space" (docs/explanation/mathematics.md has figures). `sum_x` is stored
beside `sum_xxT`, so one pass gives both.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from nullbooth_cli.datatypes import Site, Sums
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

    def add(self, sums: Iterable[Sums]) -> None:
        """Add the sums of other vectors, those of all timesteps."""
        every = list(sums)
        self._upper += torch.from_numpy(np.stack([of_step.sum_xxt for of_step in every])).to(self._upper.device)
        self.sum_x += torch.from_numpy(np.stack([of_step.sum_x for of_step in every])).to(self.sum_x.device)
        self.count += [of_step.count for of_step in every]

    def sums(self) -> list[Sums]:
        """The sums of each timestep, in host memory."""
        of_steps = zip(self.sum_xxt.cpu().numpy(), self.sum_x.cpu().numpy(), self.count.tolist(), strict=True)
        return [Sums(*of_step) for of_step in of_steps]


def fold(moments: SecondMoments, site: Site, x: torch.Tensor, first: int = 0) -> None:
    """Add the vectors that a site recorded, `[S, N, D]`, without the padding of prompts, which is NaN (see `Site.masked`)."""
    if not site.masked:
        moments.update(x, first)
        return
    for step, of_step in enumerate(x, start=first):
        moments.update(of_step[~of_step[:, 0].isnan()][None], step)


def sums_nbytes(sites: Sequence[Site], num_steps: int) -> int:
    """Bytes of the stored moments of all sites and timesteps. Partial sums need 8 D bytes more for each count."""
    return sum(site.num_recorded(num_steps) * 8 * (site.dim * (site.dim + 1) + 1) for site in sites)
