"""How the spectra of a finished store change over timesteps, and how its null spaces overlap. Nothing is written."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import Pooling
from nullbooth_cli.nullspace.projector import Projector, expected_overlap, overlap
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Decomposition, Store

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SiteOverTimesteps:
    """The spectrum of one site at each timestep alone, cut by the rule in force.

    `eigenvalues` are `[T, D]`, ascending; the other arrays have one value per timestep, `[T]`, and `heldout_leakage` is NaN
    without held-out prompts. `overlap` `[T, T]` compares the null spaces of every two timesteps, NaN where one is empty; `chance`
    is the mean overlap of random ones.
    """

    site: Site
    timesteps: Floats
    eigenvalues: Floats
    null_dim: Floats
    effective_rank: Floats
    leakage: Floats
    heldout_leakage: Floats
    overlap: Floats
    chance: float


@dataclass(frozen=True, kw_only=True)
class LayerOverlap:
    """The overlap `[n, n]` of the null spaces of every two of the `layers` `[n]` that have this feature and width.

    `chance` is the mean overlap of two random null spaces of these sizes.
    """

    feature: str
    dim: int
    layers: tuple[str, ...]
    overlap: Floats
    chance: float


def over_timesteps(store: Store, device: "torch.device", config: Config, sites: Iterable[Site]) -> Iterator[SiteOverTimesteps]:
    """Every site that depends on the timestep. A timestep without a null space has `null_dim` 0; it is not an error.
    Of a factor, no more directions are preserved than it has.

    Cost: a decomposition for every site and timestep, read where the scope is timestep; 4 D^2 bytes in memory per timestep of a
    site.
    """
    from nullbooth_cli.nullspace.decompose import decompositions

    settings = replace(decomposition_of(config, store), pooling=Pooling("timestep"))
    varying = [site for site in sites if not site.timestep_free]
    found: Iterable[tuple[Site, int, Decomposition]]
    if config.project.scope == "timestep":
        found = (
            (site, t, store.projectors.read_decomposition(site, t)) for site, t in settings.pooling.units(varying, settings.steps)
        )
    else:
        found = decompositions(store, device, settings, varying)
    rule, value = config.project.rule()
    for site, of_site in groupby(found, key=lambda item: item[0]):
        timesteps = np.array([step.timestep for step in site.recorded(settings.steps)])
        yield _over_timesteps(site, timesteps, (decomposition for _, _, decomposition in of_site), rule, value)


def _over_timesteps(
    site: Site, timesteps: Floats, decompositions: Iterable[Decomposition], rule: str, value: float
) -> SiteOverTimesteps:
    rows, projectors, spectra = [], [], []
    for found in decompositions:
        dropped = site.dim - found.eigenvectors.shape[1]
        null_dim, heldout = spectrum.null_dim_of(found.eigenvalues, found.energies, rule, value, dropped=dropped)
        null_dim = max(null_dim, dropped)
        rank = spectrum.effective_rank(found.eigenvalues)
        leaked = spectrum.leakage(found.energies[0], null_dim)
        rows.append((null_dim, rank, leaked, np.nan if heldout is None else spectrum.leakage(heldout, null_dim)))
        spectra.append(found.eigenvalues)
        projectors.append(Projector.of(found.eigenvectors, null_dim))
    null_dims, ranks, leakages, heldout_leakages = np.array(rows, dtype=np.float64).T
    return SiteOverTimesteps(
        site=site,
        timesteps=timesteps,
        eigenvalues=np.stack(spectra),
        null_dim=null_dims,
        effective_rank=ranks,
        leakage=leakages,
        heldout_leakage=heldout_leakages,
        overlap=overlaps(projectors),
        chance=by_chance(projectors),
    )


def overlaps(projectors: list[Projector]) -> Floats:
    """`[n, n]` symmetric, the overlap of every two null spaces of one width."""
    found = np.eye(len(projectors))
    for i, j in combinations(range(len(projectors)), 2):
        found[i, j] = found[j, i] = overlap(projectors[i], projectors[j])
    return found


def by_chance(projectors: list[Projector]) -> float:
    """The mean over every two null spaces of the overlap of random ones of their sizes."""
    return float(np.mean([expected_overlap(one, other) for one, other in combinations(projectors, 2)] or [1.0]))


def between_layers(store: Store, sites: Iterable[Site]) -> Iterator[LayerOverlap]:
    """The overlaps of each feature and width that two or more layers have; the scope must be pooled. Cost: reads eigenvectors."""

    def kind(site: Site) -> tuple[str, int]:
        return site.feature, site.dim

    for (feature, dim), group in groupby(sorted(sites, key=kind), key=kind):
        several = list(group)
        if len(several) > 1:
            projectors = [load_projector(store, site) for site in several]
            yield LayerOverlap(
                feature=feature,
                dim=dim,
                layers=tuple(site.layer for site in several),
                overlap=overlaps(projectors),
                chance=by_chance(projectors),
            )
