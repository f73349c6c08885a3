"""The solutions of closed-form edits. All weights of a site have one K1, so one system is solved for all of them: dW = W M.

Rows are tokens: `source` is K1^T and `missing` is (K* - K1)^T, both `[N, D]`, so that R = V1 - W K1 = W (K* - K1).
"""

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.nullspace.projector import Projector

Rows = NDArray[np.float64]


def alphaedit(source: Rows, missing: Rows, projector: Projector, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`: R is W (K* - K1).

    As P is a projector, K1^T P (K1 K1^T P + a I)^-1 = (P K1)^T ((P K1) (P K1)^T + a I)^-1, which is symmetric and positive.
    """
    # The last P removes the round-off of the solution outside the null space.
    return projector.apply(_solve(projector.apply(source), missing, penalty * np.eye(projector.dim)))


def uce(source: Rows, missing: Rows, preserved: Rows, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`; `preserved` is b K0 K0^T, `[D, D]`."""
    return _solve(source, missing, preserved + penalty * np.eye(len(preserved)))


def _solve(source: Rows, missing: Rows, penalty: Rows) -> Rows:
    """missing^T X (X^T X + penalty)^-1 for X = `source` `[N, D]`."""
    return np.asarray(np.linalg.solve(source.T @ source + penalty, source.T @ missing).T)
