"""The timesteps that a decomposition pools, and their sums. Needs no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import AnySums, FactoredSums, Site, Step, Sums
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.nullspace.factored import add_factored
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.store import Store, Task, tasks_of


@dataclass(frozen=True)
class Pooling:
    """The scope of a projector: "pooled" over all timesteps or those in a range (both ends inclusive), or one per "timestep".

    `weight` "count" gives every vector the same weight, "timestep" every timestep, however many vectors it has.
    """

    scope: str = "pooled"
    timesteps: tuple[float, float] | None = None
    weight: str = "count"

    def groups(self, site: Site, steps: Sequence[Step]) -> list[list[int]]:
        """The recorded timesteps of each decomposition of a site: one group if pooled, else a group for each timestep.

        Raises ConfigError if no timestep of the schedule lies in the range.
        """
        recorded = list(range(site.num_recorded(len(steps))))
        if self.scope == "timestep":
            return [[t] for t in recorded]
        if self.timesteps is None or site.timestep_free:
            return [recorded]
        stored, chosen = site.recorded_steps(len(steps)), self.in_range(steps)
        if not (found := [stored.index(t) for t in chosen if t in stored]):
            raise ConfigError(
                f"{site.name} is recorded in none of the timesteps of project.timesteps: its denoiser does not run there",
                f"set a range with one of its own: {listed([f'{step.timestep:g}' for step in site.recorded(steps)], most=10)}",
            )
        return [found]

    def in_range(self, steps: Sequence[Step]) -> list[int]:
        """The steps whose timestep lies in the range, all without one. Raises ConfigError if none does."""
        if self.timesteps is None:
            return list(range(len(steps)))
        low, high = self.timesteps
        chosen = [t for t, step in enumerate(steps) if low <= step.timestep <= high]
        if not chosen:
            present = listed([f"{step.timestep:g}" for step in steps], most=10)
            raise ConfigError(
                f"no timestep lies in project.timesteps [{low:g}, {high:g}]",
                f"set a range with timesteps of the schedule: {present}",
            )
        return chosen

    def units(self, sites: Sequence[Site], steps: Sequence[Step]) -> list[tuple[Site, int]]:
        """The units of stage project, in order: (site, number of its group)."""
        return [(site, index) for site in sites for index in range(len(self.groups(site, steps)))]


@dataclass(frozen=True)
class DecompositionSettings:
    """The settings that a decomposition depends on, beside the moments. `centred` subtracts the mean.

    `batch_size` prompts were added to the moments in one product.
    """

    pooling: Pooling
    steps: tuple[Step, ...]
    centred: bool = False
    accumulate: str = "float64"
    batch_size: int = 1
    heldout: bool = False  # whether leakage is measured on held-out prompts too


def add_up(several: Iterable[AnySums]) -> AnySums:
    """The total of one or more sums of one kind, with two of them in memory at a time."""
    return reduce(_plus, several)


def _plus(one: AnySums, other: AnySums) -> AnySums:
    if isinstance(one, Sums) and isinstance(other, Sums):
        return Sums(one.sum_xxt + other.sum_xxt, one.sum_x + other.sum_x, one.count + other.count)
    assert isinstance(one, FactoredSums)
    assert isinstance(other, FactoredSums)
    return add_factored(one, other)


def pooled(
    store: Store,
    site: Site,
    timesteps: Iterable[int] | None = None,
    weight: str = "count",
    *,
    tasks: Sequence[Task] | None = None,
) -> AnySums:
    """The sums of a site over recorded timesteps, all of them by default, with those of `tasks`: see `with_tasks`.

    Weight "timestep" scales the sums of each timestep to the mean count; the count stays that of all vectors. Cost: one read of
    their moments.
    """
    timesteps = list(range(site.num_recorded(store.num_steps)) if timesteps is None else timesteps)
    tasks = tasks_of(store, "hard") if tasks is None else tasks
    if weight == "count":
        return add_up(with_tasks(store, site, timesteps, tasks))
    total = int(counts_with_tasks(store, site, tasks)[timesteps].sum())
    return add_up(_scaled(sums, total / len(timesteps) / sums.count) for sums in with_tasks(store, site, timesteps, tasks))


def pooled_before_each(store: Store, site: Site, timesteps: Sequence[int], weight: str, tasks: Sequence[Task]) -> list[AnySums]:
    """The sums that `pooled` gives with the tasks before each of `tasks`: with none, with the first, and so on.

    Cost: one read of the moments of the store and of each task, and all of these sums in memory.
    """
    before = [tasks[:place] for place in range(len(tasks))]
    totals = [int(counts_with_tasks(store, site, some)[timesteps].sum()) for some in before]
    remembered = [_weighed(task, site, timesteps) for task in tasks[:-1]]
    found: list[AnySums] = []
    for i, sums in enumerate(store.moments.read(site, timesteps)):
        for place, total in enumerate(totals):
            if place and (of_task := remembered[place - 1]) is not None:
                sums = _plus(sums, of_task[i])
            here = sums if weight == "count" else _scaled(sums, total / len(timesteps) / sums.count)
            if i:
                found[place] = _plus(found[place], here)
            else:
                found.append(here)
    return found


def with_tasks(store: Store, site: Site, timesteps: Sequence[int], tasks: Sequence[Task]) -> Iterator[AnySums]:
    """The sums of each recorded timestep of a site, with those of tasks, each by its weight."""
    remembered = [found for task in tasks if (found := _weighed(task, site, timesteps)) is not None]
    for i, sums in enumerate(store.moments.read(site, timesteps)):
        yield add_up([sums, *(of_task[i] for of_task in remembered)])


def counts_with_tasks(store: Store, site: Site, tasks: Sequence[Task]) -> NDArray[np.int64]:
    """The number of vectors in the moment of each recorded timestep of a site, `[T]`, with those of tasks, each by its weight.

    Cost: the matrices are not read.
    """
    counts = store.moments.counts(site)
    for task in tasks:
        if (own := task.site(site)) is not None:
            counts = counts + task.weight * task.store.moments.counts(own)
    return counts


def edited(store: Store, site: Site) -> NDArray[np.float64] | None:
    """K1 K1^T `[D, D]` of the edits that a store remembers softly, each times its weight; None without any at this site."""
    every = range(site.num_recorded(store.num_steps))
    found = [sums for task in tasks_of(store, "soft") for sums in _weighed(task, site, every) or ()]
    if not found:
        return None
    total = add_up(found)
    return total.sum_xxt if isinstance(total, Sums) else total.factor.T @ total.factor


def _weighed(task: Task, site: Site, timesteps: Sequence[int]) -> list[AnySums] | None:
    """The sums of a task, of which every vector counts as `weight`; None if the site was not recorded."""
    found = task.sums(site, timesteps)
    return None if found is None else [_scaled(sums, task.weight)._replace(count=sums.count * task.weight) for sums in found]


def _scaled(sums: AnySums, factor: float) -> AnySums:
    """The same vectors with another weight, and their count as it was."""
    if isinstance(sums, Sums):
        return Sums(sums.sum_xxt * factor, sums.sum_x * factor, sums.count)
    return sums._replace(
        factor=sums.factor * np.sqrt(factor), sum_x=sums.sum_x * factor, trace=sums.trace * factor, delta=sums.delta * factor
    )


def moment_of(sums: AnySums) -> Moment:
    """The second moment about zero, whole or as a factor as the sums are."""
    if isinstance(sums, Sums):
        return Moment(second_moment(sums), sums.mean, sums.count)
    kept = sums.factor / np.sqrt(sums.count)
    missing = max(sums.trace / sums.count - float(np.square(kept).sum()), 0.0)
    # What is missing has no more in one direction than in all.
    return Moment(kept, sums.mean, sums.count, missing=missing, bound=min(sums.delta / sums.count, missing))


def second_moment(sums: Sums, *, centred: bool = False) -> NDArray[np.float64]:
    """`[D, D]` float64, exactly symmetric: sum_xxT / count, less the outer square of the mean if `centred`."""
    moment = sums.sum_xxt / sums.count
    if centred:
        moment = moment - np.outer(sums.mean, sums.mean)
    return np.asarray((moment + moment.T) / 2)
