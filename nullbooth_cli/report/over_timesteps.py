"""What is worth looking at in a finished store: how its spectra go over timesteps and layers, and how null spaces compare.

Everything is read or computed on the spot, nothing written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import Pooling
from nullbooth_cli.nullspace.projector import Projector, overlap
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.project import decomposing
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Decomposition, Store

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteOverTimesteps:
    """How one site goes over the timesteps: the spectrum of each timestep alone, cut by the rule in force.

    `eigenvalues` are `[T, D]`, ascending; the other arrays have one value per timestep, `[T]`, and `heldout_leakage` is NaN
    without held-out prompts. `overlap` `[T, T]` compares the null spaces (`nullspace.overlap`), NaN where one is empty.
    """

    site: Site
    timesteps: Floats
    eigenvalues: Floats
    null_dim: Floats
    effective_rank: Floats
    leakage: Floats
    heldout_leakage: Floats
    overlap: Floats


def over_timesteps(store: Store, device: "torch.device", config: Config, sites: Iterable[Site]) -> Iterator[SiteOverTimesteps]:
    """The course of every site that the timestep changes; a rule that finds nothing null gives 0, and no error.

    Cost: a decomposition for every site and timestep, read where the scope is timestep; 4 D^2 bytes kept per timestep of a site.
    """
    from nullbooth_cli.nullspace.decompose import decompositions

    settings = replace(decomposing(config, store), pooling=Pooling("timestep"))
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
        rows, projectors, spectra = [], [], []
        for _, _, decomposition in of_site:
            null_dim, held = spectrum.null_dim_of(decomposition.eigenvalues, decomposition.energies, rule, value)
            rank = spectrum.effective_rank(decomposition.eigenvalues)
            leaked = spectrum.leakage(decomposition.energies[0], null_dim)
            rows.append((null_dim, rank, leaked, np.nan if held is None else spectrum.leakage(held, null_dim)))
            spectra.append(decomposition.eigenvalues)
            projectors.append(Projector.of(decomposition.eigenvectors, null_dim))
        timesteps = np.array([step.timestep for step in settings.steps])
        null_dims, ranks, leakages, heldout = np.array(rows, dtype=np.float64).T
        yield SiteOverTimesteps(site, timesteps, np.stack(spectra), null_dims, ranks, leakages, heldout, overlaps(projectors))


def overlaps(projectors: list[Projector]) -> Floats:
    """`[n, n]` symmetric, the overlap of every two null spaces of one width."""
    found = np.eye(len(projectors))
    for i, j in combinations(range(len(projectors)), 2):
        found[i, j] = found[j, i] = overlap(projectors[i], projectors[j])
    return found


def between_layers(store: Store, sites: Iterable[Site]) -> Iterator[tuple[str, int, list[str], Floats]]:
    """(feature, D, layers `[n]`, overlap `[n, n]`) for every feature and width that two layers or more have; pooled scope."""

    def kind(site: Site) -> tuple[str, int]:
        return site.feature, site.dim

    for (feature, dim), group in groupby(sorted(sites, key=kind), key=kind):
        several = list(group)
        if len(several) > 1:
            yield feature, dim, [site.layer for site in several], overlaps([load_projector(store, site) for site in several])
