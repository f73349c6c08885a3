"""Cutting a spectrum into a preserved part and a null space, by the rule of `project`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import WHOLE, Factoring, Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.factor_limits import FactorTooSmall, needed_value
from nullbooth_cli.store import Cut

# The value of these rules is an eigenvalue: below the noise floor it would separate round-off from round-off.
EIGENVALUE_RULES = ("nullspace_threshold", "relative_threshold")
BELOW_NOISE = "raise the threshold, or set null_dim or target_leakage: eigenvalues below the noise floor are round-off"


FloatArray = NDArray[np.float64]


class SiteSpectrum(NamedTuple):
    """The spectrum of one decomposition: `eigenvalues` `[D]` ascending, `energies` `[2, D]` (see `store.Decomposition`).

    The first `dropped` eigenvalues have no eigenvector: they are null under every rule that can be in force.
    """

    site: Site
    group: int
    eigenvalues: FloatArray
    energies: FloatArray
    noise_floor: float
    dropped: int = 0


def cut(found: SiteSpectrum, *, rule: str, value: float, may_be_empty: bool = False) -> Cut:
    """Cut one spectrum.

    Raises ConfigError naming the site if nothing is null (unless `may_be_empty`) or the threshold lies below the noise floor;
    FactorTooSmall if that is for what the factor lacks.
    """
    name, eigenvalues, energies = found.site.name, found.eigenvalues, found.energies
    null_dim, heldout = spectrum.null_dim_of(eigenvalues, energies, rule, value, dropped=found.dropped)
    span = f"its {len(eigenvalues)} eigenvalues go from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}"
    threshold = spectrum.threshold(eigenvalues, rule, value, null_dim)
    is_below = rule in EIGENVALUE_RULES and threshold is not None and threshold < found.noise_floor
    if found.dropped and (is_below or null_dim < found.dropped):
        raise FactorTooSmall(
            found.site,
            rule,
            value,
            needed_value(rule, eigenvalues, energies, dropped=found.dropped, noise_floor=found.noise_floor),
        )
    if is_below:
        raise ConfigError(
            f"{rule} {value:g} cuts {name} at {threshold:.3g}, below its noise floor of {found.noise_floor:.3g}: {span}",
            BELOW_NOISE,
        )
    if null_dim == 0 and not may_be_empty:
        raise ConfigError(
            f"the null space of {name} is empty under {rule} {value:g}: {span}",
            "loosen the threshold, leave this layer or feature out, preserve fewer prompts, or set project.empty to freeze",
        )
    heldout_leakage = None if heldout is None else spectrum.leakage(heldout, null_dim)
    return Cut(null_dim, spectrum.leakage(energies[0], null_dim), heldout_leakage)


def require_possible(rule: str, value: float, sites: Sequence[Site], accumulate: str, factoring: Factoring = WHOLE) -> None:
    """Raise ConfigError for a rule that cannot cut some site, whatever its spectrum; needs no moments."""
    widest = max(sites, key=lambda site: site.dim - factoring.rows(site.dim))
    if rule == "null_dim" and value < widest.dim - factoring.rows(widest.dim):
        raise ConfigError(
            f"null_dim {value:g} preserves {widest.dim - value:g} directions of {widest.name}, "
            f"and covariance.factor_rank keeps {factoring.rank}",
            "raise covariance.factor_rank, or choose another rule: null_dim is one number for all sites",
        )
    narrowest = min(sites, key=lambda site: site.dim)
    if rule == "null_dim" and value > narrowest.dim:
        raise ConfigError(
            f"null_dim {value:g} is more than the {narrowest.dim} dimensions of {narrowest.name}",
            "set a smaller null_dim, or leave the layer or feature out",
        )
    floor = max(spectrum.noise_floor(1.0, site.dim, accumulate) for site in sites)
    if rule == "relative_threshold" and value < floor:
        raise ConfigError(
            f"relative_threshold {value:g} lies below the noise floor, {floor:.2g} with covariance.accumulate: {accumulate}",
            BELOW_NOISE,
        )
