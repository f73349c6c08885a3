"""SPEED (Li et al., arXiv 2503.07392): a null space of its own for each weight, and inputs whose outputs stay exactly equal.

    P   null space of the preserved tokens that the edit would move more than the mean (prior filter), and of their noisy copies
    K2  the first token of the empty prompt, and three centres of its others
    dW  = R K1^T P (I - M K2 (K2^T P M K2)^-1 K2^T P) M,  M = ((K1 K1^T + C) P + a I)^-1

What the edit would move is measured by that of `alphaedit` without any null space: E = R K1^T (K1 K1^T + a I)^-1. The noise is
along the weight's smallest right singular vector, where the output hardly sees it. dW is the solution within the null space under
dW K2 = 0, so it is that of `alphaedit` within the null space without K2 (`solve.without`).

Beside the authors: C; the preserved tokens are all of a prompt, not only its last one; the rule that cuts P is the store's, not
1e-1; the ridge counts for the sum over the concepts, not their mean.
"""

from dataclasses import dataclass

import numpy as np

from nullbooth_cli.editing.solve import Rows, without
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.projector import Projector

_CENTRES = 3


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What SPEED preserves at one site: tokens of preserved prompts `[N, D]`, those of the empty prompt `[L, D]`, in order."""

    preserved: Rows
    empty: Rows
    noise: int
    seed: int

    def projector(self, weight: Rows, effect: Rows, rule: str, value: float) -> Projector:
        """P without K2, of a weight and its E, both `[M, D]`, cut by a rule of `nullspace.spectrum`.

        Cost: 2 N D^2 + 9 D^3 operations, for each weight.
        """
        values, vectors = np.linalg.eigh(filtered_moment(self.preserved, weight, effect, noise=self.noise, seed=self.seed))
        null = Projector.of(vectors, spectrum.null_dim(values, rule, value))
        return without(null, exact_rows(self.empty, self.seed))


def filtered_moment(preserved: Rows, weight: Rows, effect: Rows, *, noise: int, seed: int) -> Rows:
    """The second moment `[D, D]` of the rows of `preserved` `[N, D]` that E moves more than the mean, and of noisy copies.

    Each of them has `noise` copies x + g v, v the smallest right singular vector of W and g normal; those that E moves more than
    the mean copy stay. So only the g of each row are drawn, and the copies are summed as sum n x x^T + x s^T + s x^T + q v v^T.
    """
    moved = preserved @ effect.T
    norms = np.linalg.norm(moved, axis=1)
    chosen = norms > norms.mean() if norms.max() > norms.min() else np.ones(len(norms), bool)
    rows, moved = preserved[chosen], moved[chosen]
    total, count = rows.T @ rows, len(rows)
    if noise:
        smallest = np.linalg.svd(weight, full_matrices=False)[2][-1]
        g = np.random.default_rng(seed).standard_normal((len(rows), noise))
        along = effect @ smallest
        of_copies = np.sqrt(np.square(moved).sum(1)[:, None] + 2 * g * (moved @ along)[:, None] + g**2 * float(along @ along))
        g = np.where(of_copies > of_copies.mean(), g, np.nan)
        number = np.isfinite(g).sum(1)
        mixed = np.outer(rows.T @ np.nansum(g, 1), smallest)
        total += (rows * number[:, None]).T @ rows + mixed + mixed.T + np.nansum(g**2) * np.outer(smallest, smallest)
        count += int(number.sum())
    return np.asarray(total / count)


def exact_rows(empty: Rows, seed: int) -> Rows:
    """K2^T: the first token of the empty prompt, and the centres of its others, `[4, D]` or fewer."""
    return np.vstack([empty[:1], _centres(empty[1:], seed)]) if len(empty) > 1 else empty


def _centres(rows: Rows, seed: int) -> Rows:
    """The centres `[3, D]` of rows by k-means (Lloyd, started as k-means++); all rows if there are fewer different ones."""
    rng, different = np.random.default_rng(seed), np.unique(rows, axis=0)
    if len(different) <= _CENTRES:
        return different
    centres = rows[[rng.integers(len(rows))]]
    while len(centres) < _CENTRES:
        nearest = _distances(rows, centres).min(1)
        centres = np.vstack([centres, rows[rng.choice(len(rows), p=nearest / nearest.sum())]])
    while True:
        members = _distances(rows, centres).argmin(1)
        found = np.stack([rows[members == i].mean(0) if (members == i).any() else centres[i] for i in range(_CENTRES)])
        if np.array_equal(found, centres):
            return found
        centres = found


def _distances(rows: Rows, centres: Rows) -> Rows:
    return np.asarray(np.square(rows[:, None] - centres[None]).sum(2))
