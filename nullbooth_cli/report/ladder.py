"""A ladder of thresholds under the rule in force: the null space and the leakage that each of them would give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nullbooth_cli.datatypes import Step
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.pipeline.project import decomposition_basis, decomposition_of
from nullbooth_cli.report.inspection import Rule
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

if TYPE_CHECKING:
    import torch

    from nullbooth_cli.nullspace.cut import SiteSpectrum

# The values that are tried under each rule, beside the one in force.
LADDERS: dict[str, tuple[float, ...]] = {
    "nullspace_threshold": tuple(m * 10.0**e for e in range(-8, 2) for m in (1, 3)),
    "threshold_percent": (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "relative_threshold": tuple(m * 10.0**e for e in range(-8, 0) for m in (1, 3)),
    "energy": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 0.99999),
    "target_leakage": tuple(m * 10.0**e for e in range(-4, 0) for m in (1, 2, 5)),
    "null_dim": tuple(2**e for e in range(13)),
}


@dataclass(frozen=True, kw_only=True)
class RungSite:
    """One spectrum, cut at the threshold of a rung; `below_noise` is True if this threshold lies below its noise floor,
    or would preserve directions that the factor of a moment does not have."""

    layer: str
    feature: str
    key: str
    dim: int
    null_dim: int
    leakage: float
    heldout_leakage: float | None
    below_noise: bool


@dataclass(frozen=True, kw_only=True)
class RungTotals:
    """One threshold: its totals, and the number of sites without a null space and of those cut below their noise."""

    value: float
    null_dim: int
    dim: int
    largest_leakage: float
    largest_heldout_leakage: float | None
    empty: int
    below_noise: int


@dataclass(frozen=True, kw_only=True)
class Rung(RungTotals):
    """The same, with every site."""

    sites: tuple[RungSite, ...]


@dataclass(frozen=True, kw_only=True)
class Ladder(Document):
    """Rungs from the smallest threshold to the largest, the one in force among them; all have the same sites in one order."""

    store: str
    scope: str
    rule: Rule
    heldout: bool
    ladder: tuple[Rung, ...]

    @property
    def in_force(self) -> Rung:
        """The rung of the rule's value."""
        return next(rung for rung in self.ladder if rung.value == self.rule.value)


def explore_thresholds(config: Config, store: Store, device: "torch.device") -> Ladder:
    """Try a ladder of thresholds on a store whose moments are complete; nothing is written.

    Cost: one read of the stored spectra. Where they are missing or of other settings, every decomposition again, in memory.
    """
    from nullbooth_cli.nullspace.decompose import spectra

    current = store.records.get("decomposition") == decomposition_basis(config, store)
    stored = current and bool(store.progress.done("decomposition").all())
    found = list(spectra(store, device, decomposition_of(config, store), stored=stored))
    rule, scope = Rule(*config.project.rule()), config.project.scope
    return Ladder(
        store=store.url,
        scope=scope,
        rule=rule,
        heldout=any(np.isfinite(each.energies[1]).all() for each in found),
        ladder=rungs_of(rule, found, store.schedule(), scope),
    )


def rungs_of(rule: Rule, spectra: "Sequence[SiteSpectrum]", steps: Sequence[Step], scope: str) -> tuple[Rung, ...]:
    """A rung for each value of the ladder of a rule. Values of `null_dim` beyond the smallest site are left out."""
    smallest = min(len(each.eigenvalues) for each in spectra)
    values = sorted({*LADDERS[rule.name], float(rule.value)})
    tried = (value for value in values if rule.name != "null_dim" or value <= smallest)
    return tuple(_rung(value, [_cut(each, rule.name, value, steps, scope) for each in spectra]) for value in tried)


def _cut(found: "SiteSpectrum", rule: str, value: float, steps: Sequence[Step], scope: str) -> RungSite:
    """A spectrum under one threshold. One below the noise floor, or that asks more of a factor than it has, is marked."""
    site = found.site
    null_dim, heldout = spectrum.null_dim_of(found.eigenvalues, found.energies, rule, value, dropped=found.dropped)
    threshold = spectrum.threshold(found.eigenvalues, rule, value, null_dim)
    return RungSite(
        layer=site.layer,
        feature=site.feature,
        key="pooled" if scope == "pooled" or site.timestep_free else site.recorded(steps)[found.group].key,
        dim=site.dim,
        null_dim=null_dim,
        leakage=spectrum.leakage(found.energies[0], null_dim),
        heldout_leakage=None if heldout is None else spectrum.leakage(heldout, null_dim),
        below_noise=null_dim < found.dropped or (threshold is not None and threshold < found.noise_floor),
    )


def _rung(value: float, sites: Iterable[RungSite]) -> Rung:
    sites = tuple(sites)
    return Rung(
        value=float(value),
        null_dim=sum(site.null_dim for site in sites),
        dim=sum(site.dim for site in sites),
        largest_leakage=max(site.leakage for site in sites),
        largest_heldout_leakage=max((s.heldout_leakage for s in sites if s.heldout_leakage is not None), default=None),
        empty=sum(site.null_dim == 0 for site in sites),
        below_noise=sum(site.below_noise for site in sites),
        sites=sites,
    )
