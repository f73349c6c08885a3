"""What a store remembers: tasks, each a store of its own inside it, with the sums of what was taught or edited.

    tasks/<name>/      sums of the task's prompts on the changed model; its record of collect has the digests of that model

The attribute `tasks` of the store around them lists those that count, in the order in which the model was changed. A task is
recorded first and listed last, by one atomic write: one that is not listed is left over from a run that was stopped.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from nullbooth_cli.datatypes import CHECKPOINT, RESULT, RESULTS, TASKS, TRAINED, AnySums, Site
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.store.format import record_again
from nullbooth_cli.store.open_backing import is_url
from nullbooth_cli.store.store import Store

Kind = Literal["hard", "soft"]
ORIGIN = "origin"  # attribute of a task's store: what it was asked for
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ListedTask:
    """One task as the list has it. A vector of it counts as `weight` vectors of the preserved prompts.

    `hard`: the null space of the store around it has none of its inputs. `soft`: only closed-form edits weigh it, as their term
    C. `source` is the place of the changed model, as `resolved` gives it, and `relative` the way to it from the store's folder,
    None if one of them is no path.
    """

    name: str
    kind: Kind
    weight: int
    source: str
    relative: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ListedTask):
    """One task with its sums."""

    store: Store

    def site(self, site: Site) -> Site | None:
        """The site of the same name in the task; None if it was not recorded there."""
        return next((own for own in self.store.sites if own.name == site.name), None)

    def sums(self, site: Site, timesteps: Sequence[int]) -> list[AnySums] | None:
        """Its sums of a site at recorded timesteps, without its weight; None if the site was not recorded."""
        own = self.site(site)
        return None if own is None else list(self.store.moments.read(own, timesteps))

    @property
    def weights(self) -> Mapping[str, str]:
        """The digest of each protected weight of the model after this task, by its name."""
        digests: Mapping[str, str] = self.store.records["collect"]["tensors"]
        return digests

    @property
    def digest(self) -> str | None:
        """The digest of the files that were put onto the model before it; None for a pipeline, which its weights tell."""
        found: str | None = self.store.arrays.attribute(ORIGIN)["digest"]
        return found


def tasks_of(store: Store, kind: Kind | None = None) -> tuple[Task, ...]:
    """The tasks that a store remembers, in order; those of one kind only, if it is given.

    Raises StoreError for one that is listed and not there. Cost: one small object for each.
    """
    return tuple(open_task(store, entry) for entry in listed_tasks(store) if kind in (None, entry.kind))


def listed_tasks(store: Store) -> list[ListedTask]:
    """The list of the tasks, in order. Cost: none."""
    return [ListedTask(**entry) for entry in store.arrays.attribute("tasks")] if store.arrays.has_attribute("tasks") else []


def remembered(store: Store, source: str, kind: Kind | None = None) -> ListedTask | None:
    """The first task of the changed model at a place, whatever its name; None if the store does not remember it.

    It is the model at the recorded place, or at the end of the recorded way from the store: both may have been moved together.
    """
    return next((entry for entry in listed_tasks(store) if kind in (None, entry.kind) and is_of(store, entry, source)), None)


def is_of(store: Store, entry: ListedTask, source: str) -> bool:
    """Whether a task is that of the changed model at a place. The files may have changed since."""
    by_way = None if entry.relative is None else resolved(os.path.join(store.url, entry.relative))
    return resolved(source) in (resolved(entry.source), by_way)


def resolved(source: str) -> str:
    """The place of a changed model, the same from every current folder: real paths, also of the parts of a sum such as `a@0.8+b`.

    Of a result inside the output of a training run, it is the output, and of trained files inside a checkpoint the checkpoint. A
    URL or a hub id stays as it is.
    """
    if is_url(source):
        return source
    if os.path.exists(path := os.path.expanduser(source)):
        around, name = os.path.split(real := os.path.realpath(path))
        is_result = name in RESULTS and os.path.exists(os.path.join(around, RESULT))
        is_trained = name == TRAINED and CHECKPOINT.fullmatch(os.path.basename(around)) is not None
        return around if is_result or is_trained else real
    if "+" in source:
        return "+".join(map(resolved, source.split("+")))
    name, sign, scale = source.rpartition("@")
    return f"{resolved(name)}@{scale}" if sign and name else source


def name_for(store: Store, source: str, kind: Kind, named: str) -> str:
    """The name of a task that nobody named: that which the store has of this kind for the model, else a new one after `named`.

    What cannot be in a folder's name becomes a hyphen; a name that another task has gets a number.
    """
    if (found := remembered(store, source, kind)) is not None:
        return found.name
    taken = {entry.name for entry in listed_tasks(store)}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", named).lstrip("._-")[:60] or "task"
    return next(each for each in (name, *(f"{name}-{number}" for number in range(2, 1000))) if each not in taken)


def leftovers(store: Store) -> list[str]:
    """The names of tasks that are there and not listed, left by runs that were stopped. Cost: a list request."""
    listed = {entry.name for entry in listed_tasks(store)}
    return [name for name in store.arrays.children(TASKS) if name not in listed]


def open_task(store: Store, entry: ListedTask) -> Task:
    """A task by its entry in the list. Raises StoreError if it is not there, was not recorded, or belongs to another store."""
    place = place_of(entry.name)
    if (inner := store.inside(place)) is None:
        raise StoreError(f"{store.url} remembers the task {entry.name}, and {place} is missing", record_again(place))
    if "covariance" not in inner.records:  # recorded again, and stopped
        raise StoreError(f"{store.url} remembers the task {entry.name}, and {place} is not complete", record_again(place))
    return Task(**asdict(entry), store=inner)


def is_complete(inner: Store) -> bool:
    """Whether the store of a task has all of its sums. Cost: its progress cells."""
    if not {"collect", "covariance"} <= set(inner.records):
        return False
    return bool((inner.progress.cells("covariance") == len(inner.progress.cells("collect"))).all())


def place_of(name: str) -> str:
    """The place of a task inside its store. Raises ConfigError for a name that cannot be a folder's."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a task",
            "use letters, digits, dots, hyphens and underscores, 64 at most, and begin with one of the first two",
        )
    return f"{TASKS}/{name}"


def list_task(store: Store, name: str, *, kind: Kind, weight: int, source: str) -> None:
    """Let a task count from now on: its sums are complete."""
    place = resolved(source)
    is_path = os.path.exists(place) and not is_url(store.url)
    relative = os.path.relpath(place, os.path.realpath(store.url)) if is_path else None
    _write_list(store, [*listed_tasks(store), ListedTask(name=name, kind=kind, weight=weight, source=place, relative=relative)])


def list_copied(copy: Store, source: str, place: str) -> None:
    """Give the tasks in a copy of the store at `source` the ways from the `place` that the copy will have; both are folders."""

    def listed(entry: ListedTask) -> ListedTask:
        if entry.relative is None:
            return entry
        found = resolved(os.path.join(source, entry.relative))
        found = found if os.path.exists(found) else entry.source
        return replace(entry, source=found, relative=os.path.relpath(found, os.path.realpath(place)))

    if tasks := listed_tasks(copy):
        _write_list(copy, [listed(entry) for entry in tasks])


def unlist_task(store: Store, name: str) -> None:
    """Let a task count no longer; its sums stay. Raises ConfigError if there is none of this name, listed or left over."""
    listed = listed_tasks(store)
    left = [entry for entry in listed if entry.name != name]
    if len(left) == len(listed) and not store.nbytes(place_of(name)):
        names = ", ".join(entry.name for entry in listed) or "none"
        raise ConfigError(f"{store.url} has no task {name}", f"name one of those that it remembers: {names}")
    if len(left) < len(listed):
        _write_list(store, left)


def _write_list(store: Store, tasks: Sequence[ListedTask]) -> None:
    store.arrays.update_attributes(tasks=[asdict(task) for task in tasks])
