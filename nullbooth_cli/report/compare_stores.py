"""Two finished stores side by side."""

from collections.abc import Iterable, Iterator
from typing import Any

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import expected_overlap, leakage_on, overlap
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.project import decomposing
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store


def compare_stores(config: Config, store: Store, other_config: Config, other: Store, sites: Iterable[Site]) -> dict[str, Any]:
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
        cuts = store.projectors.read_cut(site, index), other.projectors.read_cut(other_site, index)
        moments = (
            second_moment(pooled(store, site, group, mine.pooling.weight)),
            second_moment(pooled(other, other_site, other_group, theirs.pooling.weight)),
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
            "chance": expected_overlap(*projectors),
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
