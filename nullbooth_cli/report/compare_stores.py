"""Two finished stores side by side."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.formatting import counted
from nullbooth_cli.nullspace.pooling import DecompositionSettings, moment_of, pooled
from nullbooth_cli.nullspace.projector import expected_overlap, leakage_on, overlap
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store, tasks_of


@dataclass(frozen=True)
class SettingDifference:
    """A setting, the weights, the prompts or the tasks in which two stores differ, with the value of each, or None."""

    field: str
    values: tuple[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ComparedSite:
    """Two projectors of one site; every pair is (first store, second store).

    `overlap` is 1 if the smaller null space lies in the larger, NaN if one is empty; `chance` is the mean overlap of unrelated
    null spaces of these sizes. `leakage_on_the_other` is the leakage of each projector on the prompts of the other store.
    """

    layer: str
    feature: str
    key: str
    dim: int
    null_dim: tuple[int, int]
    leakage: tuple[float, float]
    heldout_leakage: tuple[float | None, float | None]
    overlap: float
    chance: float
    leakage_on_the_other: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ComparisonTotals:
    """All compared sites together; every pair is (first store, second store)."""

    sites: int
    dim: int
    null_dim: tuple[int, int]
    largest_leakage: tuple[float, float]
    largest_leakage_on_the_other: tuple[float, float]
    mean_overlap: float


@dataclass(frozen=True, kw_only=True)
class Comparison(Document):
    """Two stores: the settings in which they differ, the sites that both have, and the names of those that only one has."""

    stores: tuple[str, str]
    scope: str
    differences: tuple[SettingDifference, ...]
    sites: tuple[ComparedSite, ...]
    only_in: tuple[tuple[str, ...], tuple[str, ...]]
    totals: ComparisonTotals


@dataclass(frozen=True)
class _Side:
    """One of the two stores."""

    store: Store
    settings: DecompositionSettings


def compare_stores(config: Config, store: Store, other_config: Config, other: Store, sites: Iterable[Site]) -> Comparison:
    """Two finished stores by `sites` of the first: sizes, leakages, overlap of the null spaces.

    Raises ConfigError if the scopes or the schedules differ, or no site is the same in name and width. Cost: one read of the
    eigenvectors and moments of both stores.
    """
    scopes = [each.project.scope for each in (config, other_config)]
    if scopes[0] != scopes[1]:
        place = (store if scopes[0] == "timestep" else other).url
        raise ConfigError(
            f"{store.url} has projectors of scope {scopes[0]}, {other.url} of scope {scopes[1]}",
            Rerun("project", force=True, store=place, settings=("project.scope=pooled",), otherwise=" gives both one scope"),
        )
    theirs = {(site.name, site.dim): site for site in other.sites}
    common = [(site, theirs[site.name, site.dim]) for site in sites if (site.name, site.dim) in theirs]
    if not common:
        raise ConfigError(
            f"{store.url} and {other.url} have no site in common: none has the same layer, feature and width in both",
            "compare stores of one architecture",
        )
    one, two = _Side(store, decomposition_of(config, store)), _Side(other, decomposition_of(other_config, other))
    compared = tuple(row for pair in common for row in _compare_sites(one, two, *pair))
    return Comparison(
        stores=(store.url, other.url),
        scope=scopes[0],
        differences=tuple(_differences(store, other)),
        sites=compared,
        only_in=(_only_in(store, other), _only_in(other, store)),
        totals=_totals(compared),
    )


def _compare_sites(one: _Side, two: _Side, site: Site, other_site: Site) -> Iterator[ComparedSite]:
    """The projectors of one site in both stores, one by one."""
    groups = one.settings.pooling.groups(site, one.settings.steps)
    other_groups = two.settings.pooling.groups(other_site, two.settings.steps)
    if len(groups) != len(other_groups):
        raise ConfigError(
            f"{site.name} has {len(groups)} timesteps in {one.store.url}, {len(other_groups)} in {two.store.url}",
            "compare stores of one schedule: per-timestep projectors are compared step by step",
        )
    for index, (group, other_group) in enumerate(zip(groups, other_groups, strict=True)):
        mine, theirs = load_projector(one.store, site, index), load_projector(two.store, other_site, index)
        cut, other_cut = one.store.projectors.read_cut(site, index), two.store.projectors.read_cut(other_site, index)
        moment = moment_of(pooled(one.store, site, group, one.settings.pooling.weight))
        other_moment = moment_of(pooled(two.store, other_site, other_group, two.settings.pooling.weight))
        yield ComparedSite(
            layer=site.layer,
            feature=site.feature,
            key=site.recorded(one.settings.steps)[index].key if len(groups) > 1 else "pooled",
            dim=site.dim,
            null_dim=(cut.null_dim, other_cut.null_dim),
            leakage=(cut.leakage, other_cut.leakage),
            heldout_leakage=(cut.heldout_leakage, other_cut.heldout_leakage),
            overlap=overlap(mine, theirs),
            chance=expected_overlap(mine, theirs),
            leakage_on_the_other=(leakage_on(mine, other_moment), leakage_on(theirs, moment)),
        )


def _only_in(store: Store, other: Store) -> tuple[str, ...]:
    theirs = {(site.name, site.dim) for site in other.sites}
    return tuple(site.name for site in store.sites if (site.name, site.dim) not in theirs)


def _differences(store: Store, other: Store) -> Iterator[SettingDifference]:
    def settings(of: Store) -> dict[str, Any]:
        records = of.records
        found = {name: value for stage in STAGES for name, value in records[stage]["settings"].items()}
        tasks = ", ".join(
            f"{task.name} ({task.kind}, weight {task.weight}, {counted(len(task.store.prompts()), 'prompt')})"
            for task in tasks_of(of)
        )
        return found | {"weights": records["collect"]["weights"], "tasks": tasks or None}

    one, two = settings(store), settings(other)
    for name in dict.fromkeys([*one, *two]):
        if one.get(name) != two.get(name):
            yield SettingDifference(name, (one.get(name), two.get(name)))


def _totals(sites: Sequence[ComparedSite]) -> ComparisonTotals:
    return ComparisonTotals(
        sites=len(sites),
        dim=sum(site.dim for site in sites),
        null_dim=(sum(site.null_dim[0] for site in sites), sum(site.null_dim[1] for site in sites)),
        largest_leakage=_largest(site.leakage for site in sites),
        largest_leakage_on_the_other=_largest(site.leakage_on_the_other for site in sites),
        mean_overlap=sum(site.overlap for site in sites) / len(sites),
    )


def _largest(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    first, second = zip(*pairs, strict=True)
    return max(first), max(second)
