"""Second moments of wide inputs as low-rank factors, with an error bound that is known (Frequent Directions).

A factor B `[R, D]` stands for the sum S of x x^T. Vectors are appended to it as rows, and whenever these are too many, they are
reduced to R:

    rows^T rows = sum of l_i v_i v_i^T     eigenvalues l descending
    delta = l_(R + 1)
    B^T B = the R largest terms, of which those of the last fifth are less by delta

Each reduction takes away a positive semi-definite matrix, of at most delta in any direction: 0 <= y^T (S - B^T B) y <= the sum of
all delta, for |y| = 1. It takes delta or more from R / 5 directions, so this sum is at most |A - A_k|^2 / (R / 5 - k), where A is
the matrix of all vectors and A_k its best approximation of a rank k < R / 5. Factors of parts of the data are appended to each
other like vectors, and their sums of delta add up. (Liberty, KDD 2013; Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput.
2016; the fifth: Desai, Ghashami and Phillips, IEEE TKDE 2016.)
"""

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import FactoredSums

SHRUNK = 5  # one row in this many gives up energy: docs/explanation/mathematics.md compares


def reduction(gram: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], float]:
    """(T `[R, M]`, delta) for rows X `[M, D]` with the products X X^T `[M, M]`, M > R: B is T X. Cost: 9 M^3 operations."""
    values, vectors = np.linalg.eigh(gram)
    delta, kept = max(float(values[-rank - 1]), 0.0), values[-rank:]
    tail = kept[: max(1, rank // SHRUNK)]
    scale = np.ones(rank)
    scale[: len(tail)] = np.sqrt(np.clip(tail - delta, 0.0, None) / np.where(tail > 0, tail, 1.0))
    return np.ascontiguousarray((vectors[:, -rank:] * scale).T), delta


def reduced(rows: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], float]:
    """(B `[R, D]`, delta) of rows `[M, D]`. Fewer than R get zeros behind them. Cost: 2 M^2 D + 2 M R D + 9 M^3 operations."""
    if len(rows) <= rank:
        return np.concatenate([rows, np.zeros((rank - len(rows), rows.shape[1]))]), 0.0
    turn, delta = reduction(rows @ rows.T, rank)
    return turn @ rows, delta


def add_factored(one: FactoredSums, other: FactoredSums) -> FactoredSums:
    """The sums of both, with as many rows as the first has. Cost: 12 R^2 D + 72 R^3 operations."""
    factor, delta = reduced(np.concatenate([one.factor, other.factor]), len(one.factor))
    return FactoredSums(
        factor=factor,
        sum_x=one.sum_x + other.sum_x,
        count=one.count + other.count,
        trace=one.trace + other.trace,
        delta=one.delta + other.delta + delta,
    )
