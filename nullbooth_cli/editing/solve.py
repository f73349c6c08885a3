"""The solutions of closed-form edits. All weights of a site have one K1, so one system is solved for all of them: dW = W M.

Rows are tokens: `source` is K1^T and `missing` is (K* - K1)^T, both `[N, D]`, so that R = V1 - W K1 = W (K* - K1).
"""

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.nullspace.projector import Projector

Rows = NDArray[np.float64]


def alphaedit(source: Rows, missing: Rows, projector: Projector, penalty: float, before: Rows | None = None) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`: R is W (K* - K1). `before` is C `[D, D]`.

    As P is a projector, K1^T P ((K1 K1^T + C) P + a I)^-1 = (P K1)^T (P (K1 K1^T + C) P + a I)^-1, which is symmetric and
    positive.
    """
    soft = 0.0 if before is None else projector.apply(projector.apply(before).T)
    # The last P removes the round-off of the solution outside the null space.
    return projector.apply(_solve(projector.apply(source), missing, soft + penalty * np.eye(projector.dim)))


def uce(source: Rows, missing: Rows, preserved: Rows, penalty: float, before: Rows | None = None) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`.

    `preserved` is b K0 K0^T and `before` C, both `[D, D]`.
    """
    soft = preserved if before is None else preserved + before
    return _solve(source, missing, soft + penalty * np.eye(len(preserved)))


def _solve(source: Rows, missing: Rows, penalty: Rows) -> Rows:
    """missing^T X (X^T X + penalty)^-1 for X = `source` `[N, D]`."""
    return np.asarray(np.linalg.solve(source.T @ source + penalty, source.T @ missing).T)
