"""The mathematics of a refit: a finished change solved again, so that preserved inputs count as well.

K1 are a layer's inputs for the prompts that use the change dW, K0 those for the preserved prompts, C1 and C0 their second
moments, each divided by its trace. The new change is the ridge regression of dW K1 on K1, with the outputs on K0 held at zero:

    dW' = argmin_X  tr (X - dW) C1 (X - dW)^T  +  m tr X (C0 + e I) X^T  =  dW M,      M = C1 (C1 + m (C0 + e I))^-1

`m` weighs what is preserved; e = 1e-7 stands for white noise among the preserved inputs, so that a direction that neither has is
not free. With s = tr C1 / tr C0 this is M = C1 (C1 + m s C0 + m e tr(C1) I)^-1 of the moments as they are.

`solve()` gives M. `Balance` gives every m at once: both matrices are made diagonal, W^T C1 W = diag(a) and
W^T (C0 + e I) W = diag(1 - a) with a from 0 to 1, and then

    M = W^-T diag(g) W^T,   g = a / (a + m (1 - a))

A direction that only the subject has (a = 1) stays as it is; one that only preserved prompts have (a = 0) is removed. With
c = the squared norms of the columns of dW W^-T,

    norm(dW' K1 - dW K1)^2 ~ sum (1 - g)^2 a c        norm(dW' K0)^2 ~ sum g^2 (1 - a) c  -  e norm(dW M)^2

The method is that of closed-form edits (`edit.uce`; Gandikota et al., arXiv 2308.14761) with the change's own outputs as targets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FLOOR = 1e-7  # e
LEAST = 1e-3  # of m: far below, C1 + m (C0 + e I) is singular in float64, and the drift no longer depends on m
LADDER = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FINE = tuple(float(f"{m:.2g}") for m in np.geomspace(LADDER[0], LADDER[-1], 41))  # where the knee is looked for

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a refit does to one weight at each m of a ladder; both `[len(ladder)]`.

    `missing`: norm(dW' K1 - dW K1) / norm(dW K1), the share of the change's outputs that is gone, 0 to 1. `drift`:
    norm(dW' K0) / norm(W K0) on all preserved inputs; `drift_before` is that of dW itself.
    """

    missing: Matrix
    drift: Matrix
    drift_before: float


def solve(subject: Matrix, preserved: Matrix, m: float, device: torch.device | str = "cpu") -> Matrix:
    """M `[D, D]` of two second moments `[D, D]`, for m from `LEAST`. Singular moments are no error. Cost: 3 D^3 operations."""
    one, other = _shares(subject, device), _with_floor(_shares(preserved, device))
    factor = torch.linalg.cholesky(one + m * other)
    found: Matrix = torch.cholesky_solve(one, factor).T.contiguous().cpu().numpy()
    return found


class Balance:
    """C1 and C0 of one site, made diagonal together. Float64 on `device`.

    `means` are those of the same vectors, `[D]`. Cost: two decompositions and three products, about 25 D^3 operations; 32 D^2
    bytes.
    """

    def __init__(
        self,
        subject: Matrix,
        preserved: Matrix,
        device: torch.device | str = "cpu",
        *,
        means: tuple[Matrix, Matrix] | None = None,
    ) -> None:
        one, self._preserved = _shares(subject, device), _shares(preserved, device)
        self._means, self._traces = means, tuple(float(np.trace(each)) or 1.0 for each in (subject, preserved))
        total = one + _with_floor(self._preserved)
        values, vectors = torch.linalg.eigh(total)
        whiten = vectors * values.clamp(min=FLOOR / 2).rsqrt()  # the least that they can be is FLOOR
        shares, turn = torch.linalg.eigh(whiten.T @ one @ whiten)
        self._shares = shares.clamp(0.0, 1.0)  # a
        self._to = whiten @ turn  # W
        self._from = total @ self._to  # W^-T
        self._gram = self._to.T @ self._to

    def curve(self, change: Any, weight: Any, ladder: Sequence[float], *, shift: Any = None) -> Curve:
        """The curve of one weight W and its change dW, both `[M, D]`, arrays or tensors; `ladder` has values of m above 0.

        A `shift` `[M]` of the bias, which the change has and its refit has not, needs `means`. It counts as missing, and in the
        drift before: the most that this can be where the mean of preserved inputs is unknown (NaN). Cost: 4 M D^2 + 2 D^3
        operations, and 4 D^2 for each m.
        """
        changed, initial = _float64(change, self._to), _float64(weight, self._to)
        inside = changed @ self._from
        products = inside.T @ inside
        energy = products.diagonal()  # c
        with_floor = products * self._gram  # g^T (this) g = norm(dW M)^2
        scale = _energy(initial, self._preserved)
        before, whole = _energy(changed, self._preserved), float((self._shares * energy).sum())
        toward = torch.zeros_like(self._shares)  # twice the product of the shift and the mean of dW K1, by direction
        of_shift = 0.0
        if shift is not None:
            assert self._means is not None
            s, (used, preserved) = _float64(shift, self._to), (_float64(mean, self._to) for mean in self._means)
            of_shift = float(s @ s) / self._traces[0]
            toward = 2 * (s @ inside) * (self._to.T @ used) / self._traces[0]
            whole = max(whole + float(toward.sum()) + of_shift, 0.0)
            before = _shifted(before, float(s @ s) / self._traces[1], 2 * float(s @ changed @ preserved) / self._traces[1])
        missing, drift = [], []
        for m in ladder:
            kept = self._shares / (self._shares + m * (1.0 - self._shares))
            lost = float(((1.0 - kept) ** 2 * self._shares * energy + (1.0 - kept) * toward).sum()) + of_shift
            moved = float((kept**2 * (1.0 - self._shares) * energy).sum() - FLOOR * (kept @ with_floor @ kept))
            missing.append(_ratio(lost, whole))
            drift.append(_ratio(max(moved, 0.0), scale))
        return Curve(missing=np.array(missing), drift=np.array(drift), drift_before=_ratio(before, scale))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What one m is predicted to do: root mean squares over the weights, and the largest.

    `missing`: norm(dW' K1 - dW K1) / norm(dW K1), how much of what the change does to its own prompts is gone. `drift`:
    norm(dW' K0) / norm(W K0), how far it moves outputs on the preserved prompts.
    """

    m: float
    missing: float
    largest_missing: float
    drift: float
    largest_drift: float


def rungs_of(ladder: Sequence[float], curves: Sequence[Curve]) -> list[Rung]:
    """A rung for each m, over the curves of all weights."""
    missing, drift = (np.stack([getattr(curve, name) for curve in curves]) for name in ("missing", "drift"))
    return [
        Rung(
            m=m,
            missing=_root_mean_square(missing[:, i]),
            largest_missing=float(missing[:, i].max()),
            drift=_root_mean_square(drift[:, i]),
            largest_drift=float(drift[:, i].max()),
        )
        for i, m in enumerate(ladder)
    ]


def drift_before(curves: Sequence[Curve]) -> float:
    """The root mean square over all weights of the drift of the change as it was."""
    return _root_mean_square([curve.drift_before for curve in curves])


def knee(rungs: Sequence[Rung], before: float) -> int:
    """The rung nearest to a change that lost nothing and drifts no more: where missing^2 + (drift / before)^2 is least.

    Both are shares, so neither the ends of the ladder nor the size of the change move the knee.
    """
    return int(np.argmin([rung.missing**2 + (rung.drift / before if before else 0.0) ** 2 for rung in rungs]))


def _shares(moment: Matrix, device: torch.device | str) -> torch.Tensor:
    """A moment divided by its trace; one without energy stays zero."""
    found = torch.from_numpy(moment).to(device=device, dtype=torch.float64)
    found, energy = (found + found.T) / 2, float(found.trace())
    return found / energy if energy > 0 else found


def _with_floor(preserved: torch.Tensor) -> torch.Tensor:
    return preserved + FLOOR * torch.eye(len(preserved), dtype=preserved.dtype, device=preserved.device)


def _float64(matrix: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(matrix).to(like)


def _energy(rows: torch.Tensor, moment: torch.Tensor) -> float:
    """tr(X C X^T)."""
    return max(float(((rows @ moment) * rows).sum()), 0.0)


def _shifted(energy: float, of_shift: float, cross: float) -> float:
    """Mean of |x + s|^2 of those of |x|^2 and |s|^2, and of 2 s x; the most that it can be if that is NaN."""
    return max(energy + of_shift + (2 * math.sqrt(energy * of_shift) if math.isnan(cross) else cross), 0.0)


def _ratio(part: float, whole: float) -> float:
    """sqrt(part / whole); 0 of nothing, NaN if only the whole is nothing."""
    if part <= 0:
        return 0.0
    return float(np.sqrt(part / whole)) if whole > 0 else float("nan")


def _root_mean_square(values: Sequence[float] | Matrix) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
