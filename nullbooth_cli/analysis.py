"""What is worth looking at in a finished store: how its spectra go over timesteps and layers, and how null spaces compare.

Everything is read or computed on the spot, nothing written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli import spectrum
from nullbooth_cli.config import STAGES, Config
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import Projector, chance, leakage_on, load_projector, overlap
from nullbooth_cli.pooling import Pooling, pooled, second_moment
from nullbooth_cli.states import decomposing
from nullbooth_cli.store import AttentionMaps, Decomposition, Site, Store

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Course:
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


def courses(store: Store, device: "torch.device", config: Config, sites: Iterable[Site]) -> Iterator[Course]:
    """The course of every site that the timestep changes; a rule that finds nothing null gives 0, and no error.

    Cost: a decomposition for every site and timestep, read where the scope is timestep; 4 D^2 bytes kept per timestep of a site.
    """
    from nullbooth_cli.projectors import decompositions

    settings = replace(decomposing(config, store), pooling=Pooling("timestep"))
    varying = [site for site in sites if not site.timestep_free]
    found: Iterable[tuple[Site, int, Decomposition]]
    if config.project.scope == "timestep":
        found = ((site, t, store.read_decomposition(site, t)) for site, t in settings.pooling.units(varying, settings.steps))
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
        yield Course(site, timesteps, np.stack(spectra), null_dims, ranks, leakages, heldout, overlaps(projectors))


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


def word_maps(maps: AttentionMaps, layers: Iterable[str] | None = None) -> Floats:
    """`[S, H, W, K]`: the mean of the layers' attention (all by default), brought to the size of the largest of them.

    A place of a small map stands for a block of places, and all words of the text still share out 1 at every place.
    """
    chosen = [maps.layers[layer].astype(np.float64) for layer in (maps.layers if layers is None else layers)]
    height, width = max(values.shape[1:3] for values in chosen)
    rows, columns = np.arange(height), np.arange(width)
    enlarged = [values[:, rows * values.shape[1] // height][:, :, columns * values.shape[2] // width] for values in chosen]
    return np.asarray(np.mean(enlarged, axis=0))


def compare(config: Config, store: Store, other_config: Config, other: Store, sites: Iterable[Site]) -> dict[str, Any]:
    """Two finished stores by the sites of the first: null_dim, leakage, overlap of the null spaces, and how each leaks on the
    other's prompts.

    Raises ConfigError if the scopes differ, or no site is the same in name and width.
    """
    scopes = [each.project.scope for each in (config, other_config)]
    if scopes[0] != scopes[1]:
        raise ConfigError(
            f"{store.url} has projectors of scope {scopes[0]}, {other.url} of scope {scopes[1]}",
            "nullbooth project --set project.scope=pooled --force brings one to the other",
        )
    theirs = {(site.name, site.dim): site for site in other.sites}
    common = [(site, theirs[site.name, site.dim]) for site in sites if (site.name, site.dim) in theirs]
    if not common:
        raise ConfigError(
            f"{store.url} and {other.url} have no site in common: none has the same layer, feature and width in both",
            "compare stores of one architecture",
        )
    return {
        "stores": [store.url, other.url],
        "scope": scopes[0],
        "differences": _differences(store, other),
        "sites": [row for one, two in common for row in _compared(config, store, one, other_config, other, two)],
        "only_in": [
            [site.name for site in each.sites if (site.name, site.dim) not in {(s.name, s.dim) for s in against.sites}]
            for each, against in ((store, other), (other, store))
        ],
    }


def _compared(
    config: Config, store: Store, site: Site, other_config: Config, other: Store, other_site: Site
) -> Iterator[dict[str, Any]]:
    mine, theirs = decomposing(config, store), decomposing(other_config, other)
    groups, other_groups = mine.pooling.groups(site, mine.steps), theirs.pooling.groups(other_site, theirs.steps)
    if len(groups) != len(other_groups):
        raise ConfigError(
            f"{site.name} has {len(groups)} timesteps in {store.url}, {len(other_groups)} in {other.url}",
            "per-timestep projectors are compared step by step: compare stores of one schedule",
        )
    for index, (group, other_group) in enumerate(zip(groups, other_groups, strict=True)):
        projectors = load_projector(store, site, index), load_projector(other, other_site, index)
        cuts = store.read_cut(site, index), other.read_cut(other_site, index)
        moments = (
            second_moment(*pooled(store, site, group, mine.pooling.weight)),
            second_moment(*pooled(other, other_site, other_group, theirs.pooling.weight)),
        )
        yield {
            "layer": site.layer,
            "feature": site.feature,
            "key": mine.steps[index].key if len(groups) > 1 else "pooled",
            "dim": site.dim,
            "null_dim": [cut.null_dim for cut in cuts],
            "leakage": [cut.leakage for cut in cuts],
            "heldout_leakage": [cut.heldout_leakage for cut in cuts],
            "overlap": overlap(*projectors),
            "chance": chance(*projectors),
            "leakage_on_the_other": [leakage_on(projectors[0], moments[1]), leakage_on(projectors[1], moments[0])],
        }


def _differences(store: Store, other: Store) -> list[dict[str, Any]]:
    """The settings, weights and prompts in which two stores differ."""

    def settings(of: Store) -> dict[str, Any]:
        records = of.records
        found = {name: value for stage in STAGES for name, value in records[stage]["settings"].items()}
        return found | {"weights": records["collect"]["weights"]}

    one, two = settings(store), settings(other)
    return [
        {"field": name, "values": [one.get(name), two.get(name)]}
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name)
    ]
