"""The equations of closed-form edits, in float64. Rows are tokens: `source` is K1^T `[N, D]`.

Every method gives dW = R G: R = V1 - W K1 `[M, N]` is what is missing at the edited tokens, and G `[N, D]` spreads it over the
inputs.
"""

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.nullspace.projector import Projector

Rows = NDArray[np.float64]
_DEPENDENT = 1e-8  # a row with less than this share of it left in the null space is preserved already


def alphaedit(source: Rows, projector: Projector, penalty: float, before: Rows | None = None) -> Rows:
    """G `[N, D]` = K1^T P ((K1 K1^T + C) P + a I)^-1; `penalty` is a and `before` C `[D, D]`.

    As P is a projector, it is (P K1)^T (P (K1 K1^T + C) P + a I)^-1, whose matrix is symmetric and positive.
    """
    soft = 0.0 if before is None else projector.apply(projector.apply(before).T)
    # The last P removes the round-off of the solution outside the null space.
    return projector.apply(_solve(projector.apply(source), soft + penalty * np.eye(projector.dim)))


def uce(source: Rows, preserved: Rows, penalty: float, before: Rows | None = None) -> Rows:
    """G `[N, D]` = K1^T (K1 K1^T + C + b K0 K0^T + a I)^-1; `preserved` is b K0 K0^T and `before` C, both `[D, D]`."""
    soft = preserved if before is None else preserved + before
    return _solve(source, soft + penalty * np.eye(len(preserved)))


def _solve(source: Rows, penalty: Rows) -> Rows:
    """X (X^T X + penalty)^-1 for X = `source` `[N, D]`."""
    return np.asarray(np.linalg.solve(source.T @ source + penalty, source.T).T)


def without(projector: Projector, rows: Rows) -> Projector:
    """The projector on what is left of a null space without `rows` `[N, D]`: a change within it leaves their outputs exactly
    equal.

    dW = dW P and dW x = 0 together are dW = dW P', P' the projector on the null space without P x. Rows that have no part in the
    null space are preserved already.
    """
    inside = projector.apply(rows)
    _, sizes, directions = np.linalg.svd(inside, full_matrices=False)
    directions = directions[sizes > _DEPENDENT * np.linalg.norm(rows)]
    if projector.is_complement:
        return Projector(np.ascontiguousarray(np.hstack([projector.factor, directions.T])), is_complement=True)
    coordinates = projector.factor.T @ directions.T  # [F, r]
    rest = np.linalg.qr(coordinates, mode="complete")[0][:, coordinates.shape[1] :]
    return Projector(np.ascontiguousarray(projector.factor @ rest), is_complement=False)


def smallest(moment: Rows, share: float) -> Rows:
    """The projector `[H, H]` on the directions of the smallest eigenvalues of a moment: this share of all, one at least."""
    count = max(1, int(len(moment) * share))
    vectors = np.linalg.eigh(moment)[1][:, :count]
    return np.asarray(vectors @ vectors.T)
