"""The projectors of a store: how large each null space is, the spectrum it was cut from, and how much data leaks into it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nullbooth_cli.datatypes import Site, choose_sites
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.budget import TaskBudget, budgets
from nullbooth_cli.nullspace.pooling import DecompositionSettings, counts_with_tasks
from nullbooth_cli.nullspace.spectrum import Eigenvalues
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.report.json_document import OPTIONAL, Document
from nullbooth_cli.report.names import Called, site_name
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, Task, tasks_of


@dataclass(frozen=True)
class Rule:
    """The threshold rule in force: a key of the config's section project, and its value."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class ArrayPaths:
    """The paths of a site's arrays inside the store."""

    features: str
    moments: str
    projector: str


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """One projector. `step_index` and `timestep` are None, and `key` is `pooled`, where it is pooled over timesteps.

    `largest` and `smallest` are eigenvalues of the second moment; `condition` is their ratio, infinite where the smallest is not
    above 0. `threshold` is None where every eigenvalue is null, `heldout_leakage` without held-out prompts.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    step_index: int | None
    key: str
    timestep: float | None
    dim: int
    count: int
    null_dim: int
    effective_rank: float
    largest: float
    smallest: float
    condition: float
    threshold: float | None
    noise_floor: float
    leakage: float
    heldout_leakage: float | None
    warnings: tuple[str, ...] = field(init=False)
    arrays: ArrayPaths

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", tuple(doubt.text for doubt in self.doubts))

    @property
    def doubts(self) -> list[spectrum.Doubt]:
        """The reasons to doubt it, whose texts are the warnings."""
        return spectrum.doubts_of(
            dim=self.dim,
            count=self.count,
            null_dim=self.null_dim,
            threshold=self.threshold,
            noise_floor=self.noise_floor,
            leakage=self.leakage,
            heldout_leakage=self.heldout_leakage,
        )

    @property
    def site_name(self) -> str:
        """The name of its site, `<layer>.<feature>`."""
        return f"{self.layer}.{self.feature}"


@dataclass(frozen=True, kw_only=True)
class InspectTotals:
    """All projectors of a report together: sums, and the largest leakages."""

    sites: int
    weights: int
    dim: int
    null_dim: int
    count: int
    largest_leakage: float
    largest_heldout_leakage: float | None


@dataclass(frozen=True, kw_only=True)
class InspectReport(Document):
    """The projectors of a store; `tasks` are what it remembers, `files` the pictures that were drawn of them."""

    store: str
    scope: str
    rule: Rule
    centred: bool
    sites: tuple[SiteReport, ...]
    totals: InspectTotals
    tasks: tuple[TaskBudget, ...] = ()
    files: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)


def inspect_store(
    config: Config,
    store: Store,
    *,
    layer: str | None = None,
    feature: str | None = None,
    timestep: float | None = None,
    site: str | None = None,
) -> InspectReport:
    """The projectors of a finished store, one entry for each site and, in scope timestep, each step.

    `layer` and `site` are names or glob patterns. Raises ConfigError if a filter leaves none.
    """
    rule = Rule(*config.project.rule())
    settings = decomposition_of(config, store)
    chosen, hard = choose_sites(store.sites, layer, feature, site), tasks_of(store, "hard")
    found = (entry for each in chosen for entry in _entries(settings, store, each, rule=rule, tasks=hard))
    sites = tuple(entry for entry in found if timestep is None or entry.timestep == timestep)
    if not sites:
        there = f"choose one of {', '.join(f'{step.timestep:g}' for step in settings.steps)}"
        pooled = Rerun("project", force=True, store=store.url, settings=("project.scope=timestep",), otherwise=f"; then {there}")
        raise ConfigError(
            f"no site has a projector of its own for timestep {timestep:g}",
            there if config.project.scope == "timestep" else pooled,
        )
    return InspectReport(
        store=store.url,
        scope=config.project.scope,
        rule=rule,
        centred=config.covariance.centred,
        sites=sites,
        totals=_totals(sites),
        tasks=tuple(_at_timestep(task, timestep) for task in budgets(store, settings, rule.name, rule.value, chosen)),
    )


def _at_timestep(task: TaskBudget, timestep: float | None) -> TaskBudget:
    """The budget at one timestep alone; None for all."""
    return replace(task, sites=tuple(each for each in task.sites if timestep is None or each.timestep == timestep))


def _totals(sites: Sequence[SiteReport]) -> InspectTotals:
    return InspectTotals(
        sites=len(sites),
        weights=len({weight for site in sites for weight in site.weights}),
        dim=sum(site.dim for site in sites),
        null_dim=sum(site.null_dim for site in sites),
        count=sum(site.count for site in sites),
        largest_leakage=max(site.leakage for site in sites),
        largest_heldout_leakage=max((s.heldout_leakage for s in sites if s.heldout_leakage is not None), default=None),
    )


def _entries(
    settings: DecompositionSettings, store: Store, site: Site, *, rule: Rule, tasks: Sequence[Task]
) -> Iterator[SiteReport]:
    """The projectors of one site. Cost: one read of its eigenvalues, not of its eigenvectors."""
    pooled = settings.pooling.scope == "pooled" or site.timestep_free
    counts = counts_with_tasks(store, site, tasks)
    for index, group in enumerate(settings.pooling.groups(site, settings.steps)):
        eigenvalues, noise_floor = store.projectors.read_eigenvalues(site, index), store.projectors.read_noise_floor(site, index)
        cut = store.projectors.read_cut(site, index)
        count = int(counts[group].sum())
        step = None if pooled else site.recorded(settings.steps)[index]
        threshold = spectrum.threshold(eigenvalues, rule.name, rule.value, cut.null_dim)
        yield SiteReport(
            layer=site.layer,
            feature=site.feature,
            side=site.side,
            weights=site.weights,
            step_index=step.index if step else None,
            key=step.key if step else "pooled",
            timestep=step.timestep if step else None,
            dim=site.dim,
            count=count,
            null_dim=cut.null_dim,
            effective_rank=spectrum.effective_rank(eigenvalues),
            largest=float(eigenvalues[-1]),
            smallest=float(eigenvalues[0]),
            condition=spectrum.condition(eigenvalues),
            threshold=threshold,
            noise_floor=noise_floor,
            leakage=cut.leakage,
            heldout_leakage=cut.heldout_leakage,
            arrays=ArrayPaths(
                features=f"features/{site.name}", moments=f"moments/{site.name}", projector=f"projectors/{site.name}"
            ),
        )


def spectra_of(store: Store, entries: Iterable[SiteReport]) -> list[Eigenvalues]:
    """The eigenvalues `[D]`, ascending, behind each entry of a report. Cost: 8 D bytes read for each."""
    sites = {site.name: site for site in store.sites}
    places = ((sites[entry.site_name], entry.step_index) for entry in entries)
    return [store.projectors.read_eigenvalues(site, 0 if step is None else step - site.first_step) for site, step in places]


def sparklines(store: Store, report: InspectReport) -> list[str]:
    """The spectrum of each entry of a report, in a few characters."""
    spectra = spectra_of(store, report.sites)
    return [spectrum.sparkline(values, entry.null_dim) for values, entry in zip(spectra, report.sites, strict=True)]


def worst_first(entries: Iterable[SiteReport]) -> list[SiteReport]:
    """The entries by their leakage, the largest first: on held-out prompts where it was measured."""
    return sorted(entries, key=lambda entry: -(entry.leakage if entry.heldout_leakage is None else entry.heldout_leakage))


def most_leaking(entries: Iterable[SiteReport]) -> list[SiteReport]:
    """The entry of each site that leaks most, of all its timesteps."""
    found: dict[str, SiteReport] = {}
    for entry in entries:
        if entry.leakage > found.setdefault(entry.site_name, entry).leakage:
            found[entry.site_name] = entry
    return list(found.values())


def warning_lines(entries: Iterable[SiteReport], called: Called | None = None) -> list[str]:
    """A line for each kind of warning: the worst one, where it is, and how many sites have one.

    With `called`, the names of layers, sites are named as in pictures; without, as in the store.
    """

    def name(entry: SiteReport) -> str:
        return entry.site_name if called is None else site_name(called, entry.layer, entry.feature)

    return spectrum.worst_doubts(
        (name(entry), "" if entry.timestep is None else entry.key, doubt) for entry in entries for doubt in entry.doubts
    )
