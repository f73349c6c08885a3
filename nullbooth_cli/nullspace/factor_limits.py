"""What a rule may ask of moments that are kept as factors: they know few directions, and those up to what they lack."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum

FloatArray = NDArray[np.float64]


class FactorTooSmall(ConfigError):
    """A rule asks more of a moment than its factor has. `needed`: see `needed_value`."""

    def __init__(self, site: Site, rule: str, value: float, needed: float) -> None:
        super().__init__(*_text(rule, value, needed, f"the factor of {site.name}"))
        self.site, self.needed = site, needed


def factors_too_small(refused: Sequence[FactorTooSmall], rule: str, value: float, num_sites: int) -> ConfigError:
    """One error for all the factors that are too small, of this many sites, with the value that serves every one."""
    worst = (min if rule == "energy" else max)(refused, key=lambda error: error.needed)
    count = len({error.site for error in refused})
    which = f"the factors of {count} of {num_sites} sites, the worst of {worst.site.name}"
    return ConfigError(*_text(rule, value, worst.needed, which))


def needed_value(rule: str, eigenvalues: FloatArray, energies: FloatArray, *, dropped: int, noise_floor: float) -> float:
    """The value of a rule from which on all that a factor lacks is null; for energy, up to which.

    The first `dropped` of the eigenvalues `[D]` have no direction; `energies` are `[2, D]` (see `store.Decomposition`).
    """
    collected, heldout = energies
    if rule == "energy":
        return float(collected[dropped:].sum() / collected.sum())
    if rule == "target_leakage":
        return spectrum.leakage(heldout if np.isfinite(heldout).all() else collected, dropped)
    if rule == "threshold_percent":
        return 100 * dropped / (len(eigenvalues) - 1)
    if rule == "null_dim":
        return dropped
    return noise_floor / (float(eigenvalues[-1]) if rule == "relative_threshold" else 1.0)


def _text(rule: str, value: float, needed: float, which: str) -> tuple[str, str]:
    """Message and hint; the value that is needed is rounded to three digits, to the side that serves."""
    is_energy = rule == "energy"
    step = 10.0 ** (math.floor(math.log10(needed)) - 2) if needed > 0 else 1.0
    allowed = f"{(math.floor if is_energy else math.ceil)(needed / step) * step:.3g}"
    return (
        f"{rule} {value:g} is too {'large' if is_energy else 'small'} for {which}: a factor has at most "
        "covariance.factor_rank directions, and knows them up to what it lacks",
        f"set project.{rule} to {allowed} or {'less' if is_energy else 'more'}, raise covariance.factor_rank, or set "
        "covariance.factor_above to null",
    )
