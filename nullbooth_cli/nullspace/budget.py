"""The budget of a store that remembers tasks: what each took of the null space, and how much of it was there to be learned.

    null_dim                       of the moment before a task and of that after it, under the threshold in force
    energy = tr(P C) / tr(C)       the share of a task's inputs (second moment C) in the null space that was left before it
    leakage                        the same root share as everywhere, of the task's inputs under the projector in force

A change is learned in P alone, so what it can do to its own inputs is bounded by their energy there; dimensions without energy
serve nothing. The spectra are stored with each decomposition, so every threshold gives its own budget without decomposing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nullbooth_cli.datatypes import AnySums, Site
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import DecompositionSettings, moment_of, pooled, pooled_before_each
from nullbooth_cli.store import Decomposition, Store, Task, TaskSpectrum, tasks_of


@dataclass(frozen=True, kw_only=True)
class TaskAtSite:
    """A hard task at one projector; `step_index` and `timestep` are None, and `key` is `pooled`, where it is pooled.

    `null_dim_before` has the tasks before it, `null_dim` itself as well; `taken` is the difference, negative where the threshold
    moved further than the task filled. `energy` is the share of its inputs in the null space before it, `preserved_energy` and
    `heldout_energy` (None without held-out prompts) those of the prompts preserved until then and of the held-out ones.
    `leakage` is that of its inputs under the projector in force, after all tasks.
    """

    site: str
    key: str
    step_index: int | None
    timestep: float | None
    dim: int
    null_dim_before: int
    null_dim: int
    taken: int = field(init=False)
    energy: float
    preserved_energy: float
    heldout_energy: float | None
    leakage: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "taken", self.null_dim_before - self.null_dim)


@dataclass(frozen=True, kw_only=True)
class TaskBudget:
    """A task that a store remembers: what `tasks` lists, its number of prompts, and its budget; a soft task has no `sites`."""

    name: str
    kind: str
    weight: int
    source: str
    prompts: int
    sites: tuple[TaskAtSite, ...]


def task_spectra(
    store: Store,
    site: Site,
    group: int,
    *,
    settings: DecompositionSettings,
    final: Decomposition,
    tasks: Sequence[Task],
    decompose: Callable[[AnySums], Decomposition],
) -> list[TaskSpectrum]:
    """What each of the hard `tasks` met and left in one decomposition, `final`, which has all of them.

    Cost: for each task one more decomposition, by `decompose`; one read of the moments, and two of the tasks'.
    """
    timesteps, weight = settings.pooling.groups(site, settings.steps)[group], settings.pooling.weight
    found = []
    for task, sums in zip(tasks, pooled_before_each(store, site, timesteps, weight, tasks), strict=True):
        before = decompose(sums)
        own = moment_of(pooled(task.store, _own_site(task, site), timesteps, weight))
        energies = (own.spread_energies(each.eigenvectors) for each in (before, final))
        found.append(TaskSpectrum(before.eigenvalues, *before.energies, *energies))
    return found


def _own_site(task: Task, site: Site) -> Site:
    own = task.site(site)
    assert own is not None, site.name  # a hard task was recorded at every site of its store
    return own


def budgets(store: Store, settings: DecompositionSettings, rule: str, value: float, sites: Sequence[Site]) -> list[TaskBudget]:
    """The budget of every task at some sites, under the rule of their cuts. `project` must be complete.

    Cost: 40 D bytes read for each projector and hard task.
    """
    tasks = tasks_of(store)
    hard = [task.name for task in tasks if task.kind == "hard"]
    at_sites: list[list[TaskAtSite]] = [[] for _ in hard]
    for site in sites if hard else ():
        for group in range(len(settings.pooling.groups(site, settings.steps))):
            for found, entry in zip(at_sites, _entries(store, settings, site, group, rule=rule, value=value), strict=True):
                found.append(entry)
    of_hard = dict(zip(hard, at_sites, strict=True))
    return [
        TaskBudget(
            name=task.name,
            kind=task.kind,
            weight=task.weight,
            source=task.source,
            prompts=len(task.store.prompts()),
            sites=tuple(of_hard.get(task.name, ())),
        )
        for task in tasks
    ]


def _entries(
    store: Store, settings: DecompositionSettings, site: Site, group: int, *, rule: str, value: float
) -> list[TaskAtSite]:
    """The hard tasks at one projector, in order."""
    is_pooled = settings.pooling.scope == "pooled" or site.timestep_free
    step = None if is_pooled else site.recorded(settings.steps)[group]
    dropped, spectra = store.projectors.num_dropped(site), store.projectors.read_tasks(site, group)
    cuts = [spectrum.null_dim_of(met.eigenvalues, met.energies, rule, value, dropped=dropped) for met in spectra]
    # Of a factor, what it dropped is null.
    null_dims = [*(max(null_dim, dropped) for null_dim, _ in cuts), store.projectors.read_cut(site, group).null_dim]
    return [
        TaskAtSite(
            site=site.name,
            key=step.key if step else "pooled",
            step_index=step.index if step else None,
            timestep=step.timestep if step else None,
            dim=site.dim,
            null_dim_before=before,
            null_dim=after,
            energy=spectrum.share(met.task, before),
            preserved_energy=spectrum.share(met.collected, before),
            heldout_energy=None if heldout is None else spectrum.share(heldout, before),
            leakage=spectrum.leakage(met.task_after, null_dims[-1]),
        )
        for met, (_, heldout), before, after in zip(spectra, cuts, null_dims[:-1], null_dims[1:], strict=True)
    ]
