"""One second moment, whole or as a factor, and what can be said of vectors with it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """The second moment C of the vectors x of a site, the mean of x x^T about zero; their `mean` `[D]` and `count`.

    `kept` is C `[D, D]`, exactly symmetric, or a factor B `[R, D]` of fewer rows with 0 <= y^T (C - B^T B) y <= bound |y|^2 and
    trace(C - B^T B) = missing. All are float64. The mean of an imported store is NaN: its files have none.
    """

    kept: Floats
    mean: Floats
    count: int
    missing: float = 0.0
    bound: float = 0.0

    @property
    def dim(self) -> int:
        """D, the number of values of a vector."""
        return int(self.kept.shape[1])

    @property
    def is_factored(self) -> bool:
        """Whether only a factor was kept."""
        return len(self.kept) < self.dim

    @property
    def second_moment(self) -> Floats:
        """C `[D, D]`; of a factor B^T B, which is less by at most `bound` in every direction. Cost of the latter: 2 R D^2."""
        return self.kept.T @ self.kept if self.is_factored else self.kept

    @property
    def ceiling(self) -> Floats:
        """C `[D, D]`; of a factor B^T B + bound I, which is not less than C in any direction."""
        return self.second_moment + self.bound * np.eye(self.dim) if self.is_factored else self.kept

    @property
    def trace(self) -> float:
        """The trace of C, the mean of |x|^2: exact for a factor as well."""
        return float(np.square(self.kept).sum()) + self.missing if self.is_factored else float(np.trace(self.kept))

    def energies(self, directions: Floats) -> Floats:
        """u^T C u of each column u of `[D, K]`, `[K]`; of a factor not more than that, and less by at most `bound`."""
        if self.is_factored:
            return np.asarray(np.square(self.kept @ directions).sum(0))
        return np.asarray(np.einsum("dk,dk->k", directions, self.kept @ directions))

    def spread_energies(self, eigenvectors: Floats) -> Floats:
        """The energies `[D]` along the last eigenvectors `[D, R]`; what these lack of the trace is spread over the D - R others.

        So the leakage of a null space that has all those others is the most that it can be.
        """
        found = self.energies(eigenvectors)
        dropped = self.dim - len(found)
        lacking = max(self.trace - float(found.sum()), 0.0)
        return np.concatenate([np.full(dropped, lacking / max(dropped, 1)), found])

    def energy(self, rows: NDArray[np.floating]) -> tuple[float, float]:
        """The least and the most that trace(X C X^T) of rows X `[M, D]` can be; they differ only for a factor.

        Cost: 2 M D^2 operations, 2 M R D for a factor.
        """
        rows = rows.astype(np.float64)
        if not self.is_factored:
            energy = max(float(np.einsum("md,md->", rows @ self.kept, rows)), 0.0)
            return energy, energy
        least = float(np.square(rows @ self.kept.T).sum())
        return least, least + self.bound * float(np.square(rows).sum())
