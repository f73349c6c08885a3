"""Remember what a model was taught: its prompts, as the changed model receives them, join what the store preserves.

The sums of a *task* are made by the ordinary stages, in a store inside the store, so that they resume and are checked like any
other. A task counts once it is listed; then the projectors are computed again, from all sums. Nothing of the preserved prompts is
read from the model again, and `forget` takes a task out exactly.

What a token of a task weighs is a whole number of preserved tokens: with 1 the projectors are those of a collection with both
kinds of prompts.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.nullspace.usable import require_pooled
from nullbooth_cli.pipeline.end_of_chain import require_from_end
from nullbooth_cli.pipeline.from_sums import SummedCollection, fill_store
from nullbooth_cli.pipeline.open_run import open_run
from nullbooth_cli.pipeline.project import require_inputs
from nullbooth_cli.pipeline.run import Run, StateCache, decide
from nullbooth_cli.pipeline.stages import execute, give_schedule
from nullbooth_cli.pipeline.state import require
from nullbooth_cli.progress import Event, Interrupts, Note
from nullbooth_cli.settings.config import Config, public_settings
from nullbooth_cli.settings.knowledge import PROMPTS_FIELD, heldout_prompts, require_disjoint, task_config
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Kind, Layout, Store, list_task, listed_tasks, pack_sums, unlist_task
from nullbooth_cli.store.pieces import DAMAGE, Damage
from nullbooth_cli.store.tasks import ORIGIN, is_complete, is_of, place_of, resolved
from nullbooth_cli.store.verify import TASK_STAGES, run_checks

STAGE = "remember"
MOST_WEIGHT = 10**6  # counts are int64
Found = Literal["new", "unfinished", "damaged", "remembered"]  # of a task, in a store


@dataclass(frozen=True, kw_only=True)
class RememberRequest:
    """A request: the changed model at `source`, and the prompts that use what it was taught.

    `edits`: the sums of an edit's rows K1 at each of its sites, by name, for a soft task; None for a hard one, whose sums are
    recorded. `weights` are then the digests of the edited weights by name, and `digest` that of the edit.
    """

    source: str
    prompts: tuple[str, ...]
    name: str
    weight: int = 1
    edits: Mapping[str, Sums] | None = None
    weights: Mapping[str, str] | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        place_of(self.name)
        if type(self.weight) is not int or not 1 <= self.weight <= MOST_WEIGHT:
            raise ConfigError(
                f"weight is {self.weight}",
                f"set it to a whole number from 1 to {MOST_WEIGHT:,}: how many preserved tokens each counts",
            )
        if not self.prompts or not all(text.strip() for text in self.prompts):
            raise ConfigError("the task has no prompt, or an empty one", "name the prompts that use what was taught")

    @property
    def kind(self) -> Kind:
        """Whether the null space excludes it, or only later edits weigh it."""
        return "hard" if self.edits is None else "soft"

    def origin(self, config: Config) -> dict[str, Any]:
        """What a task that was started must have in common with this request to be resumed.

        Raises ConfigError for a source without a model. Cost: one read of the files that are put onto a base.
        """
        from nullbooth_cli.collect.edited_model import read_place

        digest = read_place(config, self.source).digest if self.edits is None else self.digest
        return {"source": resolved(self.source), "digest": digest, "prompts": list(self.prompts), "kind": self.kind}


def remember_events(
    config: Config, request: RememberRequest, *, device: str | None = None, interrupts: Interrupts | None = None
) -> Iterator[Event]:
    """Record a task into the store of a config, list it, and compute the projectors again.

    A task that is listed already under the same name and origin is left as it is; if it is damaged, it is recorded again in its
    place, so that the order of the tasks stays. Raises StageError before `covariance` is complete, ConfigError for a name that is
    taken, every error of collecting, and ModelError for a changed model with other layers. Cost: that of collecting the prompts
    and of `project`, for a listed task one read of it; the store is locked meanwhile.
    """
    origin = request.origin(config)
    with _opened(config, device, interrupts) as run:
        found = decide(run, lambda: _found(run.store, request, origin))
        if found == "remembered":
            yield Note(f"the task {request.name} is remembered already")
        else:
            if found == "damaged":
                yield Note(f"the task {request.name} is damaged, and recorded again")
            decide(run, lambda: _begin(run, request, origin, damaged=found == "damaged"))
            yield from _record(run, request) if request.edits is None else _write(run, request)
            decide(run, lambda: _list(run.store, request))
        if request.kind == "hard":
            yield from _project(run)


def plan_remember(config: Config, request: RememberRequest) -> Found:
    """What `remember_events` would do: record a task that is `new`, `unfinished` or `damaged`, or nothing if it is `remembered`.

    Raises as `remember_events` does, as far as that is known without the model. Writes nothing. Cost: a read of the task's files.
    """
    origin, store = request.origin(config), Store.open(config.store, options=config.storage_options)
    found = _found(store, request, origin)
    if found != "remembered":
        _require_possible(Run(config=config, prompts=store.prompts(), store=store), request)
    return found


def forget_events(
    config: Config, name: str, *, device: str | None = None, interrupts: Interrupts | None = None
) -> Iterator[Event]:
    """Take a task out of the store of a config, and compute the projectors again: they are those of before, exactly.

    It resumes where a run was stopped that did the same. Raises ConfigError if there is no such task. Cost: that of `project`;
    the store is locked meanwhile.
    """
    with _opened(config, device, interrupts) as run:
        if decide(run, lambda: _unlist(run, name)):
            yield from _project(run)
        decide(run, lambda: run.store.delete(place_of(name)))  # last: until then the same request finds what is to be done


def _opened(config: Config, device: str | None, interrupts: Interrupts | None) -> Any:
    """The run on a store that is there; its prompts are those of the collection."""
    store = Store.open(config.store, options=config.storage_options)
    return open_run(config, store.prompts(), create=False, device=device, interrupts=interrupts)


def _found(store: Store, request: RememberRequest, origin: Mapping[str, Any]) -> Found:
    """What the store has of this task; raises ConfigError if it has another one of the name, or of a model that has changed.

    Cost: one read of it.
    """
    entry = next((entry for entry in listed_tasks(store) if entry.name == request.name), None)
    try:
        inner = store.inside(place_of(request.name))
        known = None if inner is None else _origin(inner)
        is_whole = inner is not None and known is not None and not _is_damaged(inner)
    except DAMAGE:
        if entry is None:
            return "damaged"
        inner, known, is_whole = None, None, False
    if entry is None:
        return "new" if inner is None or known != origin else "unfinished" if is_whole else "damaged"
    is_same = is_of(store, entry, request.source) and (entry.weight, entry.kind) == (request.weight, request.kind)
    # Store and model may have been moved together.
    if not is_same or (known is not None and {**known, "source": origin["source"]} != origin):
        raise ConfigError(
            f"{store.url} remembers another task by the name {request.name}: {entry.source}, with weight {entry.weight}",
            "choose another name, or forget that task first",
        )
    return "damaged" if inner is None or not is_whole else "remembered" if is_complete(inner) else "unfinished"


def _is_damaged(inner: Store) -> bool:
    return any(isinstance(found, Damage) for stage in TASK_STAGES for found in run_checks(inner, stage))


def _origin(inner: Store) -> Any:
    return inner.arrays.attribute(ORIGIN) if inner.arrays.has_attribute(ORIGIN) else None


def _unlist(run: Run, name: str) -> bool:
    """Let a task count no longer, unless a run that was stopped has done so; returns whether the projectors are to follow."""
    store, place = run.store, place_of(name)
    kinds = {entry.name: entry.kind for entry in listed_tasks(store)}
    excluded = name in store.records.get("decomposition", {}).get("tasks", {})
    if name in kinds or not excluded or store.nbytes(place):
        unlist_task(store, name)
    if name in kinds:
        return kinds[name] == "hard"
    return excluded or run.states().own["project"].state == "partial"


def _list(store: Store, request: RememberRequest) -> None:
    """Let the task count, unless it does: one that is recorded again keeps its place."""
    if not _is_listed(store, request):
        list_task(store, request.name, kind=request.kind, weight=request.weight, source=request.source)


def _is_listed(store: Store, request: RememberRequest) -> bool:
    return any(entry.name == request.name for entry in listed_tasks(store))


def _begin(run: Run, request: RememberRequest, origin: Mapping[str, Any], *, damaged: bool) -> None:
    """Check that the task can be remembered, and make its store, with the schedule of the one around it.

    What another request left that was stopped is removed; the sums of an edit are written at once, so they start anew.
    """
    store, place = run.store, place_of(request.name)
    _require_possible(run, request)
    inner = None if damaged else store.inside(place, write=True)
    if damaged or (inner is not None and (request.kind == "soft" or _origin(inner) != origin)):
        store.delete(place)
    inner = store.inside_or_create(place, public_settings(_inner_config(run, request)))
    inner.arrays.update_attributes(**{ORIGIN: origin})
    give_schedule(store, inner)


def _require_possible(run: Run, request: RememberRequest) -> None:
    """Raise for a store that cannot remember the task, and for prompts that it holds out."""
    store = run.store
    if _is_listed(store, request):  # the state of project cannot be read with this task
        require(replace(run, stage="covariance").states().stages, "covariance", store.url)
    else:
        require(run.states().stages, "covariance" if request.kind == "hard" else "project", store.url)
        require_from_end(run.config, store, request.source)
    require_inputs(run.config)
    if "project" in store.records:
        require_pooled(store)
    require_disjoint(heldout_prompts(run.config), load_prompts(list(request.prompts), PROMPTS_FIELD))
    if request.edits is not None and (other := sorted(set(request.edits) - {site.name for site in store.sites})):
        raise ConfigError(f"{store.url} has no site {other[0]}, which was edited", "name the store that the edit was made with")
    if not store.records["collect"].get("tensors"):
        raise ConfigError(
            f"{store.url} does not record which weights it was made from, so no model can follow them",
            "collect from the model into another store",
        )


def _inner_config(run: Run, request: RememberRequest) -> Config:
    return task_config(run.config, place_of(request.name), request.prompts)


def _inner(run: Run, request: RememberRequest) -> Store:
    """The store of the task, open for writing."""
    inner = run.store.inside(place_of(request.name), write=True)
    assert inner is not None  # `_begin` made it
    return inner


def _record(run: Run, request: RememberRequest) -> Iterator[Event]:
    """Collect the prompts with the changed model, and add them up."""
    inner, config = _inner(run, request), _inner_config(run, request)
    prompts = load_prompts(list(request.prompts), PROMPTS_FIELD)
    task = replace(run, config=config, prompts=prompts, store=inner, edited=request.source, cache=StateCache())
    for event in execute("collect", task):
        yield event if isinstance(event, Note) else replace(event, stage=STAGE)
    _require_same_sites(run.store, inner, request)


def _require_same_sites(store: Store, inner: Store, request: RememberRequest) -> None:
    """Raise ModelError unless the changed model gives every site what its base gave it."""
    expected, found = ({site.name: (site.dim, site.weights) for site in each.sites} for each in (store, inner))
    if expected != found:
        name = next(iter(dict(expected.items() ^ found.items())))
        raise ModelError(
            f"{request.source} has other layers than the model of {store.url}: {name} differs",
            "remember a model that was trained from this base",
        )


def _write(run: Run, request: RememberRequest) -> Iterator[Event]:
    """Write the sums of an edit's rows, in one process."""
    yield Note(f"{counted(len(request.prompts), 'edited prompt')} of {request.source}")
    decide(run, lambda: _write_sums(run.store, _inner(run, request), _inner_config(run, request), request))


def _write_sums(store: Store, inner: Store, config: Config, request: RememberRequest) -> None:
    assert request.edits is not None
    edits = request.edits
    sites = tuple(site for site in store.sites if site.name in edits)
    schedule, collected = store.records["schedule"], store.records["collect"]
    given = SummedCollection(
        name=STAGE,
        steps=store.schedule(),
        sites=sites,
        rows=load_prompts(list(request.prompts), PROMPTS_FIELD),
        layout=Layout(keep="moments", batch_size=1, dtype=store.layout.dtype),
        sums=((site, [pack_sums(edits[site.name])]) for site in sites),
        schedule={name: schedule[name] for name in ("scheduler", "noise", "values") if name in schedule},
        weights=str(request.digest),
        names=collected["model"],
        tensors={**collected["tensors"], **(request.weights or {})},
    )
    for _ in fill_store(inner, config, given):
        pass


def _project(run: Run) -> Generator[Event, None, None]:
    """Compute the projectors again if they do not follow from the tasks that are listed now."""
    run.store.reload()
    run.cache.forget()
    found = decide(run, lambda: _project_reasons(run))
    if found is not None:
        yield from map(Note, found)
        yield from execute("project", replace(run, stage="project", force=True))


def _project_reasons(run: Run) -> list[str] | None:
    """The settings that the projectors had before, a sentence for each, if they are to be computed again; else None."""
    found = run.states().own["project"]
    if found.state == "complete":
        return None
    changed = [str(each) for each in found.stale_because if each.field.startswith(("project.", "covariance."))]
    return [f"the projectors are computed with another setting: {change}" for change in changed]
