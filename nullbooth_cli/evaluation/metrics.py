"""Distances of two sets of pictures, from their feature vectors `[N, D]` and `[M, D]`: pure functions, float64 inside.

Use `paired=True` if row i of both sets was drawn from the same prompt. Paired samples are not independent, and a picture that
hardly changed is the nearest neighbour of its pair. As published, these estimators would then report two equal sets as different.
With `paired`, a vector is never compared with its pair, and two equal sets come out equal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]
NEIGHBOURS = 5  # Naeem et al. choose it so that two draws of one distribution are covered to 0.97


def cosines(x: Vectors, y: Vectors) -> NDArray[np.float64]:
    """The cosine of the angle between row i of `x` and row i of `y`, -1 to 1, `[N]`. Cost: N D."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray(np.einsum("nd,nd->n", x, y) / norms)


def mean_cosine(x: Vectors, y: Vectors) -> float:
    """The mean of `cosines`."""
    return float(np.mean(cosines(x, y)))


def cross_cosine(x: Vectors, y: Vectors) -> float:
    """Mean cosine between every row of `x` and every row of `y`: CLIP-I and DINO of Ruiz et al. (2023, DreamBooth)."""
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (np.asarray(x, np.float64), np.asarray(y, np.float64)))
    return float(np.mean(x @ y.T))


def inner_cosine(x: Vectors) -> float:
    """Mean cosine between every two rows of `x`, of at least two."""
    count = len(x)
    return (cross_cosine(x, x) * count - 1) / (count - 1)


def frechet_distance(x: Vectors, y: Vectors) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances (N - 1) of two clouds; FID in Inception features.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2), Heusel et al. (2017); in squared units of the features. With fewer vectors
    than a few times D it is biased upwards, equally for any two clouds of that size. The trace of the root is the sum of the
    singular values of R_x R_y^T, where S = R^T R: no root of rounding noise is taken. Cost: N D^2 + min(N, D)^3.
    """
    (mean_x, root_x), (mean_y, root_y) = _gaussian(x), _gaussian(y)
    overlap = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + np.square(root_x).sum() + np.square(root_y).sum() - 2 * overlap
    return max(float(distance), 0.0)


def _gaussian(x: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean `[D]`, R `[min(N, D), D]` with R^T R the covariance)."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    return mean, np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r"))


def kernel_distance(x: Vectors, y: Vectors, *, paired: bool = False) -> float:
    """Unbiased squared MMD with the kernel (x . y / D + 1)^3; KID in Inception features. It may come out slightly negative.

    Binkowski et al. (2018), over all vectors instead of the mean over blocks of them; `paired` is equation 4 of Gretton et al.
    (2012), which leaves the pairs out. It has no unit. Cost: (N + M)^2 D.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def kernel(a: Vectors, b: Vectors) -> NDArray[np.float64]:
        return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)

    def mean(values: NDArray[np.float64], without_diagonal: bool) -> float:
        n, m = values.shape
        return float((values.sum() - np.trace(values)) / (n * (m - 1)) if without_diagonal else values.mean())

    return mean(kernel(x, x), True) + mean(kernel(y, y), True) - 2 * mean(kernel(x, y), paired)


@dataclass(frozen=True)
class Neighbourhoods:
    """How well the pictures of two models cover the same region, 0 to 1 (density has no upper limit; 1 for one distribution).

    precision   share of the new vectors that lie in the ball of some reference vector
    recall      share of the reference vectors that lie in the ball of some new one (both Kynkaanniemi et al., 2019)
    density     mean number of balls of reference vectors that a new one lies in, over k
    coverage    share of the reference vectors with a new one in their ball (both Naeem et al., 2020)

    The ball of a vector reaches to its k-th nearest neighbour in its own set. Of two independent draws of one distribution,
    coverage is 1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), about 1 - 2^-k. `paired` concerns density and coverage only: an outlier
    that hardly changed lies in the ball of its pair and in no other, which is not a loss of precision.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(reference: Vectors, new: Vectors, *, k: int = NEIGHBOURS, paired: bool = False) -> Neighbourhoods:
    """Compare `reference` `[N, D]` with `new` `[M, D]`, both of more than k rows. Cost: (N + M)^2 D, (N + M)^2 values."""
    across, others = (_distances(reference, new, without_diagonal=without) for without in (False, paired))
    radii, new_radii = (np.sort(_distances(v, v, without_diagonal=True), axis=1)[:, k - 1] for v in (reference, new))
    inside = others <= radii[:, None]
    return Neighbourhoods(
        precision=float((across <= radii[:, None]).any(axis=0).mean()),
        recall=float((across <= new_radii).any(axis=1).mean()),
        density=float(inside.sum(axis=0).mean() / k),
        coverage=float(inside.any(axis=1).mean()),
    )


def one_nn_accuracy(x: Vectors, y: Vectors, *, paired: bool = False) -> float:
    """How often the nearest neighbour of a vector, itself left out, is of its own set: 0.5 for one distribution, 1 if apart.

    Lopez-Paz and Oquab (2017), with sets of one size; a tie counts half. Below 0.5 the two sets are closer than two draws are.
    Cost: 4 N^2 D, 3 N^2 values.
    """
    across = _distances(x, y, without_diagonal=paired)
    scores = []
    for own, other in ((x, across), (y, across.T)):
        difference = other.min(axis=1) - _distances(own, own, without_diagonal=True).min(axis=1)
        scores.append((np.sign(difference) + 1) / 2)
    return float(np.mean(scores))


def jensen_shannon(x: Vectors, y: Vectors) -> float:
    """Jensen-Shannon divergence of the histograms of each feature alone, mean over the features, in bits: 0 to 1.

    Lin (1991). The histograms have sqrt(min(N, M)) equal bins from the smallest to the largest value in either set. Two draws of
    one distribution give more than 0, equally for any two sets of that size. Cost: (N + M) D.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    bins = max(2, round(np.sqrt(min(len(x), len(y)))))
    low, high = (np.minimum(x.min(0), y.min(0)), np.maximum(x.max(0), y.max(0)))
    width = np.where(high > low, high - low, 1.0)

    def histogram(v: Vectors) -> NDArray[np.float64]:
        places = np.minimum((bins * ((v - low) / width)).astype(int), bins - 1)
        return np.stack([(places == b).mean(axis=0) for b in range(bins)])

    def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(-np.sum(p * np.log2(np.where(p > 0, p, 1.0)), axis=0))

    p, q = histogram(x), histogram(y)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return float(np.clip(divergence, 0.0, 1.0).mean())


def psnr(mean_squared_error: float) -> float | None:
    """Peak signal-to-noise ratio in dB of pictures with values in [0, 1]; None, for infinite, where they are equal."""
    return -10 * float(np.log10(mean_squared_error)) if mean_squared_error > 0 else None


def _distances(x: Vectors, y: Vectors, *, without_diagonal: bool) -> NDArray[np.float64]:
    """Euclidean distances `[N, M]`, from the differences themselves so that equal vectors tie; `without_diagonal`, inf there."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = np.stack([np.linalg.norm(y - row, axis=1) for row in x])
    if without_diagonal:
        np.fill_diagonal(found, np.inf)
    return found
