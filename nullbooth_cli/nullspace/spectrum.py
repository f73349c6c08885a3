"""Pure functions of eigenvalues: the number that are null, and the leakage that follows.

Eigenvalues are `[D]` float64, ascending, of a second moment. It is positive semi-definite up to round-off, so negative
eigenvalues count as 0. A null space is always spanned by the eigenvectors of the `null_dim` smallest eigenvalues, so every rule
returns a number.
"""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import ConfigError

Eigenvalues = NDArray[np.float64]
ADVISED_VECTORS = 10  # per dimension
ADVISED_LEAKAGE = 0.1  # a change moves the outputs on preserved prompts by at most a tenth of what it could without P
ADVISED_HELDOUT = 2.0  # times the leakage on the collected prompts
ADVISED_CLEARANCE = 10.0  # times the noise floor


def null_dim(eigenvalues: Eigenvalues, rule: str, value: float, energies: Eigenvalues | None = None) -> int:
    """The number of eigenvalues that are null under a rule.

    nullspace_threshold  l < value
    threshold_percent    l < the value-th percentile of all eigenvalues
    relative_threshold   l < value * largest
    energy               all but the fewest largest ones whose sum is at least the share `value` of the trace
    target_leakage       the most whose leakage is at most value, on the data of `energies`
    null_dim             the `value` smallest

    `energies` `[D]` are the mean squares of some data along the eigenvectors; the default is the eigenvalues. Raises ConfigError
    if null_dim is more than D.
    """
    positive = np.clip(eigenvalues, 0.0, None)
    cut = _absolute(positive, rule, value)
    if cut is not None:
        return int(np.count_nonzero(positive < cut))
    if rule == "energy":
        from_the_largest = np.cumsum(positive[::-1])
        # Share 1 means the whole trace up to round-off: the sums of the last, zero, eigenvalues must not decide.
        enough = from_the_largest >= value * from_the_largest[-1] * (1.0 - 1e-12)
        return len(positive) - int(np.argmax(enough)) - 1
    if rule == "target_leakage":
        leaking = _shares(positive if energies is None else np.clip(energies, 0.0, None))
        return int(np.count_nonzero(np.sqrt(leaking) <= value))
    if rule == "null_dim":
        if value > len(positive):
            raise ConfigError(
                f"null_dim {int(value)} is more than the {len(positive)} dimensions there are", "set a smaller null_dim"
            )
        return int(value)
    raise ValueError(f"unknown threshold rule {rule!r}")


def null_dim_of(
    eigenvalues: Eigenvalues, energies: Eigenvalues, rule: str, value: float, *, dropped: int = 0
) -> tuple[int, Eigenvalues | None]:
    """(null_dim, the held-out energies or None) of a decomposition with `energies` `[2, D]`; NaN stands for no held-out data.

    Of a factor, the `dropped` smallest eigenvalues are not known: their sum is that of their energies.
    """
    heldout = energies[1] if np.isfinite(energies[1]).all() else None
    if rule == "energy" and dropped:
        eigenvalues = energies[0]
    return null_dim(eigenvalues, rule, value, energies[0] if heldout is None else heldout), heldout


def _absolute(positive: Eigenvalues, rule: str, value: float) -> float | None:
    """The eigenvalue that a rule cuts at; None for rules that count or sum."""
    if rule == "nullspace_threshold":
        return value
    if rule == "threshold_percent":
        return float(np.percentile(positive, value))
    return value * float(positive[-1]) if rule == "relative_threshold" else None


def threshold(eigenvalues: Eigenvalues, rule: str, value: float, null_dim: int) -> float | None:
    """The eigenvalue below which all are null. For rules that count or sum, the smallest that is not null, or None."""
    cut = _absolute(np.clip(eigenvalues, 0.0, None), rule, value)
    if cut is not None:
        return cut
    return float(eigenvalues[null_dim]) if null_dim < len(eigenvalues) else None


def _shares(positive: Eigenvalues) -> Eigenvalues:
    """Share of the trace in the smallest 1, 2, ... eigenvalues, `[D]`; zeros where the trace is 0."""
    sums = np.cumsum(positive)
    return sums / sums[-1] if sums[-1] > 0 else np.zeros_like(sums)


def share(energies: Eigenvalues, null_dim: int) -> float:
    """trace(P C P) / trace(C): the share of the energy that is null, of data with these mean squares along the eigenvectors.

    On the data of the moment itself the energies are the eigenvalues. On other data they are u^T C u for each eigenvector u, so
    the moment C of those data gives them exactly.
    """
    return float(_shares(np.clip(energies, 0.0, None))[null_dim - 1]) if null_dim else 0.0


def leakage(energies: Eigenvalues, null_dim: int) -> float:
    """norm(P K) / norm(K) = sqrt(trace(P C P) / trace(C)), the root of `share`."""
    return float(np.sqrt(share(energies, null_dim)))


def noise_floor(largest: float, dim: int, accumulate: str) -> float:
    """An estimate of the eigenvalue below which round-off decides: of summing the products, and of the decomposition.

    eps * sqrt(D) * largest, with the eps of the products: independent rounding errors make a matrix of that norm (Wigner).
    Eigenvalues that should be exactly zero are 0.03 to 0.25 of it (docs/explanation/mathematics.md); many vectors that are alike
    exceed it, up to `largest_rounding`.
    """
    return float(np.finfo(accumulate).eps * np.sqrt(dim) * largest)


def largest_rounding(trace: float, *, dim: int, count: int, accumulate: str, at_once: int) -> float:
    """An upper bound of what round-off can take from an eigenvalue of a second moment with this trace, whatever the vectors.

    Sums of n terms x_i x_j are off by at most n u times the sum of their magnitudes, in any order (Higham, Accuracy and Stability
    of Numerical Algorithms, section 4.2), so a moment by at most n u times its trace. Here n is `count` in float64, and with
    float32 products also `at_once` vectors in one product. A decomposition moves eigenvalues by at most D u times the largest.
    Vectors that are all alike come near: each addition rounds in the same direction.
    """
    rounding = (count + dim) * np.finfo(np.float64).eps
    if accumulate == "float32":
        rounding += at_once * np.finfo(np.float32).eps
    return float(rounding * trace)


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt a null space, a sentence with its values. Among those of one `kind` the largest `weight` is the worst."""

    kind: str
    weight: float
    text: str


def doubts_of(
    *,
    dim: int,
    count: int,
    null_dim: int,
    threshold: float | None,
    noise_floor: float,
    leakage: float = 0.0,
    heldout_leakage: float | None = None,
) -> list[Doubt]:
    """The reasons to doubt a null space of a moment of `count` vectors; empty if there are none."""
    found = []
    if count < dim:
        text = f"{count:,} vectors cannot fill {dim} dimensions: null_dim is at least {dim - count}, which may be chance"
        found.append(Doubt("too few vectors", dim / count, text))
    elif count < ADVISED_VECTORS * dim:
        text = f"{count:,} vectors for {dim} dimensions; {ADVISED_VECTORS * dim:,} or more are advised"
        found.append(Doubt("few vectors", dim / count, text))
    if threshold is not None and null_dim and threshold < ADVISED_CLEARANCE * noise_floor:
        depth = noise_floor / max(threshold, sys.float_info.min)
        if threshold < noise_floor:
            text = f"cut at {threshold:.2g}, below the noise floor of {noise_floor:.2g}: which directions are null is round-off"
            found.append(Doubt("below the noise floor", depth, text))
        else:
            text = f"cut at {threshold:.2g}, close to the noise floor of {noise_floor:.2g}: another run may cut elsewhere"
            found.append(Doubt("near the noise floor", depth, text))
    if leakage > ADVISED_LEAKAGE:
        text = f"leakage {leakage:.2g} on the collected prompts, more than {ADVISED_LEAKAGE:g}"
        found.append(Doubt("leakage", leakage, text))
    if heldout_leakage is not None and heldout_leakage > ADVISED_LEAKAGE:
        text = f"leakage {heldout_leakage:.2g} on the held-out prompts, more than {ADVISED_LEAKAGE:g}"
        found.append(Doubt("held-out leakage", heldout_leakage, text))
    if heldout_leakage is not None and heldout_leakage > ADVISED_HELDOUT * leakage:
        text = f"held-out prompts leak {heldout_leakage:.2g}, collected ones {leakage:.2g}: the prompts do not represent others"
        found.append(Doubt("unlike held-out prompts", heldout_leakage, text))
    return found


def worst_doubts(doubts: Iterable[tuple[str, str, Doubt]]) -> list[str]:
    """A line for each kind of doubt: the worst one, where it is, and how many sites have one.

    Each doubt comes with the name of its site and the key of its step, "" for all steps.
    """
    kinds: dict[str, list[tuple[str, str, Doubt]]] = {}
    for found in doubts:
        kinds.setdefault(found[2].kind, []).append(found)
    lines = []
    for alike in kinds.values():
        site, key, worst = max(alike, key=lambda found: found[2].weight)
        sites = len({name for name, _, _ in alike})
        where = f"{site} at {key}" if key else site
        lines.append(f"{worst.text}: {where}" + (f", the worst of {sites} sites" if sites > 1 else ""))
    return lines


def effective_rank(eigenvalues: Eigenvalues) -> float:
    """exp of the entropy of the eigenvalues as shares of the trace (Roy and Vetterli, EUSIPCO 2007); 0 for a zero moment."""
    positive = np.clip(eigenvalues, 0.0, None)
    if positive.sum() == 0:
        return 0.0
    shares = positive / positive.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def condition(eigenvalues: Eigenvalues) -> float:
    """Largest over smallest; infinite where the smallest is not above 0."""
    return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > 0 else float("inf")


SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(eigenvalues: Eigenvalues, null_dim: int, width: int = 16) -> str:
    """A spectrum in a line of `width` + 1 characters: eigenvalues `[D]` from the largest down, a bar where the null space begins.

    A step is a decade: the highest block shows values within ten times of the largest, the lowest block values below 1e-7 of it
    and zero. Each block is the geometric mean of its share of the eigenvalues, so lines of any D compare.
    """
    largest = eigenvalues[-1]
    if largest <= 0:
        return SPARKS[0] * width
    decades = np.log10(np.maximum(eigenvalues[::-1] / largest, 1e-8))
    edges = np.linspace(0, len(decades), width + 1)
    means = [decades[int(a) : max(int(b), int(a) + 1)].mean() for a, b in itertools.pairwise(edges)]
    blocks = "".join(SPARKS[max(0, min(7, 7 + int(np.ceil(mean))))] for mean in means)
    cut = round(width * (1 - null_dim / len(eigenvalues)))
    return f"{blocks[:cut]}|{blocks[cut:]}"
