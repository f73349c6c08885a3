"""The stages: how each one is begun, continued or refused.

Running a complete stage says so and does nothing; a partial one goes on; a stale one is refused unless forced. Of several
processes one decides and prepares; all of them work (`workers`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nullbooth_cli.config import STAGES, Config, decomposition_settings, fingerprint, public_settings
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.events import Event, Interrupts, Note, Progress
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.states import (
    PROMPTS_FIELD,
    added_prompts,
    bytes_of,
    covered_rows,
    listed,
    removed_prompts,
    require,
    stage_states,
    wanted_settings,
)
from nullbooth_cli.steps import Step
from nullbooth_cli.store import RELEASED, Layout, Site, Store
from nullbooth_cli.workers import Workers

PACE_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """What a command was asked to do. `store` is open for writing."""

    config: Config
    prompts: tuple[Prompt, ...]
    store: Store
    device: str | None = None
    force: bool = False
    limit: int | None = None
    repair: bool = False
    auto_batch: bool = False
    workers: Workers = field(default_factory=Workers)
    interrupts: Interrupts = field(default_factory=Interrupts)


@dataclass
class Begun:
    """What the process that prepares a stage tells all of them: the units to do, and what the user should know."""

    todo: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)


def execute(stage: str, run: Run) -> Iterator[Event]:
    """Run one stage: begin it, go on with it, or say that it is complete. Raises StageError where that is refused."""
    if stage == "collect" and run.workers.agree(lambda: _state(run, "schedule") == "missing"):
        yield from execute("schedule", run)
    run.store.reload()
    said = run.workers.agree(lambda: _refuse_or_say(stage, run))
    if said:
        yield Note(said)
        return
    yield from _RUNNERS[stage](run)


def _state(run: Run, stage: str) -> str:
    return stage_states(run.config, run.prompts, run.store)[stage].state


def _refuse_or_say(stage: str, run: Run) -> str | None:
    """Raise StageError if a stage cannot run now; say so if there is nothing to do."""
    if run.repair:
        run.store.mend_cells(stage)
    now = stage_states(run.config, run.prompts, run.store)
    for upstream in STAGES[: STAGES.index(stage)]:
        require(now, upstream, run.store.url)
    found = now[stage]
    if run.force or run.repair:
        if run.repair and found.state in ("missing", "stale"):
            raise StageError(f"{stage} in {run.store.url} is {found.state}: there is nothing to repair", f"nullbooth {stage}")
        return None
    units = f"{found.units_total} unit{'s' if found.units_total != 1 else ''}"
    if found.state == "complete":
        return f"{stage} is complete: {units} in {run.store.url}"
    if found.state == "released":
        return f"{stage} is done: {units}, whose features were released; --force collects them again"
    if found.state == "stale":
        size = bytes_of(run.store, stage)
        removed = stage == "collect" and [because.field for because in found.stale_because] == [PROMPTS_FIELD]
        way = "to take them out" if removed else f"to replace its {size / 1e6:,.1f} MB"
        raise StageError(
            f"{stage} in {run.store.url} was made with other settings or inputs{listed(found)}",
            f"add --force {way}, or name another store with -s",
        )
    return None


def begin(run: Run, stage: str, extra: dict[str, Any] | None = None, **notes: Any) -> None:
    """Write the record that marks a stage as begun under the current config; `notes` are no part of its fingerprint."""
    records = run.store.records
    record = {
        "settings": wanted_settings(run.config, run.prompts, stage),
        "upstream": {name: records[name]["fingerprint"] for name in STAGES[: STAGES.index(stage)]},
        **(extra or {}),
    }
    run.store.write_config(public_settings(run.config))
    run.store.write_record(stage, {**record, "fingerprint": fingerprint(record), **notes})


def _begun(run: Run, stage: str, is_done: Callable[[int], bool], notes: list[str] | None = None) -> dict[str, Any]:
    cells = [is_done(int(cell)) for cell in run.store.cells(stage)]
    todo = run.workers.mine([unit for unit, done in enumerate(cells) if not done])[: run.limit]
    return vars(Begun(todo, sum(cells), len(cells), notes or []))


def _work(run: Run, stage: str, begun: Begun, units: Iterator[str]) -> Iterator[Event]:
    """Report the units that a stage finishes (their descriptions), with those of the other processes, until all are done."""
    started, mine = time.monotonic(), 0
    noted = started
    done = begun.done
    for what in units:
        mine += 1
        done = begun.done + run.workers.count(1)
        now = time.monotonic()
        if run.workers.rank == 0 and now - noted >= PACE_SECONDS:
            with run.workers.preparing():
                run.store.note_pace(stage, (now - started) / mine)
            noted = now
        yield Progress(stage, done, begun.total, what)
    if run.workers.rank == 0 and mine:
        with run.workers.preparing():
            run.store.note_pace(stage, (time.monotonic() - started) / mine)
    for count in run.workers.finish():
        if begun.done + count > done:
            done = begun.done + count
            yield Progress(stage, done, begun.total, "units of other processes")


def _run_schedule(run: Run) -> Iterator[Event]:
    run.workers.agree(lambda: _write_schedule(run))
    run.store.reload()
    yield Progress("schedule", 1, 1, f"{run.store.num_steps} steps")


def _write_schedule(run: Run) -> None:
    run.store.reload()
    if run.workers.shard and _state(run, "schedule") == "complete":
        return  # another shard was faster
    scheduler, steps = compute_steps(run.config, len(run.prompts))
    run.store.write_record("schedule", None)
    run.store.write_schedule(steps)
    values = fingerprint([(step.timestep, step.sigma) for step in steps])
    begin(run, "schedule", {"scheduler": scheduler, "values": values})


def compute_steps(config: Config, num_prompts: int) -> tuple[str, tuple[Step, ...]]:
    """(the scheduler's class name, the steps) that the config asks for; needs the model's scheduler, not its weights."""
    from nullbooth_cli.model import load_scheduler
    from nullbooth_cli.schedule import build_scheduler, compute_schedule

    section = config.schedule
    shipped = load_scheduler(config.model, revision=config.revision, local_files_only=config.local_files_only)
    scheduler = build_scheduler(section.sampler_strategy, shipped, section.timestep_spacing)
    steps = compute_schedule(
        section.sampler_strategy,
        scheduler,
        section.num_denoising_steps,
        mode=section.timestep_mode,
        jitter=section.sde_jitter,
        seed=section.seed,
        num_prompts=num_prompts,
    )
    return type(scheduler).__name__, steps


@dataclass(frozen=True)
class Collection:
    """A loaded model, ready to be recorded."""

    pipe: Any
    path: Any
    found: Any = field(repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        sites: tuple[Site, ...] = self.found.sites
        return sites


def load_collection(config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], device: str | None) -> Collection:
    """Load the model, hold it to the schedule and find its sites (two steps of one prompt)."""
    from nullbooth_cli import denoise, features, model, schedule, sites

    section = config.collect
    pipe = model.load_pipeline(
        config.model,
        revision=config.revision,
        variant=config.variant,
        dtype=config.dtype,
        local_files_only=config.local_files_only,
        device=model.pick_device(device),
    )
    scheduler = schedule.build_scheduler(config.schedule.sampler_strategy, pipe.scheduler, config.schedule.timestep_spacing)
    denoise.hold_to_schedule(pipe, scheduler, steps)
    projections = sites.find_projections(
        model.denoiser_of(pipe), section.collect_features.chosen(), section.cross_attention_layers
    )
    path = denoise.DenoisingPath(
        config.schedule.num_denoising_steps, steps, section.guidance_scale, section.height, section.width, section.seed
    )
    found = features.find_sites(pipe, path, projections, section.side, section.branches, prompts[0], section.tokens_per_prompt)
    return Collection(pipe, path, found)


def _run_collect(run: Run) -> Iterator[Event]:
    from nullbooth_cli import batches, denoise, features, model, moments, resources

    steps = run.store.schedule()
    device = model.pick_device(run.device or run.workers.device)
    loaded = load_collection(run.config, steps, run.prompts, str(device))
    weights = model.weights_digest(loaded.pipe)
    batch_size = run.config.collect.batch_size
    if run.auto_batch:
        batch_size = batches.largest_batch(loaded.pipe, loaded.path, loaded.found, run.prompts, device)
    begun = Begun(**run.workers.agree(lambda: _begin_collect(run, loaded, weights, batch_size, len(steps))))
    run.store.reload()
    for prompt, lost in denoise.cut_words(loaded.pipe, run.prompts):
        begun.notes.append(f"too long for the tokenizer, '{lost}' is cut off: '{prompt.text}'")
    yield from map(Note, begun.notes)
    layout, mine = run.store.layout, (begun.todo[i] for i in run.workers.share(len(begun.todo)))
    with features.Writer() as writer:
        sinks: list[features.Sink] = []
        if layout.features:
            sinks.append(features.FeatureSink(run.store, writer))
        if layout.moments and begun.todo:
            place = resources.place_for_sums(loaded.sites, len(steps), device)
            if place != device:
                yield Note(f"the sums do not fit {device} beside the model: they stay in host memory")
            part = run.store.part(run.workers.part)
            if not part.units:
                part.create(loaded.sites, len(steps))
            sinks.append(moments.MomentSink(part, loaded.sites, len(steps), place, run.config.covariance.accumulate))
        units = features.collect(
            run.store, loaded.pipe, loaded.path, loaded.found, run.config.collect.branches, mine, sinks, run.interrupts
        )
        yield from _work(run, "collect", begun, (f"prompts of unit {unit}" for unit in units))
    run.store.reload()
    if layout.moments and not run.workers.shard and run.workers.agree(lambda: _state(run, "collect") == "complete"):
        yield from _run_covariance(replace(run, limit=None, repair=False))


def _begin_collect(run: Run, loaded: Collection, weights: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Make room for what is to be collected, or check that it goes on as it was begun."""
    from nullbooth_cli import features, moments, resources
    from nullbooth_cli.verify import forget_damaged

    store, section, notes = run.store, run.config.collect, []
    store.reload()
    found = stage_states(run.config, run.prompts, store)["collect"]
    afresh = found.state == "missing" or run.force
    if run.force and found.state == "stale" and [because.field for because in found.stale_because] == [PROMPTS_FIELD]:
        note = _take_out(run)
        afresh = note is None
        notes.append(note or "sums cannot give back single prompts exactly, and their features are not there: collecting again")
    if not afresh and not run.workers.shard and found.units_done == 0 and store.layout.batch_size != batch_size:
        afresh = True  # the size of a unit is the size of a chunk: it may change as long as nothing has been collected
    sums = moments.sums_nbytes(loaded.sites, num_steps)
    if afresh:
        layout = Layout(section.keep, batch_size, section.feature_dtype, section.compression)
        needed = features.features_nbytes(loaded.sites, num_steps, len(run.prompts), layout.dtype) if layout.features else 0
        needed += 2 * sums * run.workers.size if layout.moments else 0
        resources.ensure_room(store, needed - bytes_of(store, "collect"))
        store.write_record("collect", None)
        store.create_collection(loaded.sites, num_steps, len(run.prompts), layout)
        store.write_rows(0, run.prompts)
        begin(run, "collect", {"weights": weights}, layout=vars(layout))
        return _begun(run, "collect", bool, notes)
    layout = store.layout
    recorded = store.records["collect"]["weights"]
    if recorded != weights or loaded.sites != store.sites:
        changed = f"weights {recorded} -> {weights}" if recorded != weights else "the layers and their sharing"
        raise StageError(
            f"the model {run.config.model} is not the one this collection was begun with\n  {changed}",
            "nullbooth collect --force",
        )
    if layout.batch_size != batch_size:
        notes.append(f"batch_size stays {layout.batch_size} in this store: the size of its units (now {batch_size} is asked for)")
    for part in store.parts():
        # A kill may have come between a part and the cells of its units.
        cells = store.cells("collect")
        store.mark("collect", [unit for unit in part.units if not cells[unit]], 1)
    if run.repair:
        notes.append(forget_damaged(store, "collect"))
    added = added_prompts(run.prompts, store)
    if layout.features:
        missing = int((store.cells("collect") == 0).sum()) * layout.batch_size + len(added)
        resources.ensure_room(store, features.features_nbytes(loaded.sites, num_steps, missing, layout.dtype))
    if added:
        cells = store.cells("collect")
        # A kill may have left room behind the last unit that holds anything.
        start = max((unit + 1 for unit in range(len(cells)) if cells[unit] or store.members(unit)), default=0) * layout.batch_size
        store.extend_collection(start + len(added))
        store.write_rows(start, added)
        notes.append(f"{len(added)} prompts are new: they are added to the {start} rows that are there")
    cells = store.cells("collect")
    store.mark("collect", [unit for unit in range(len(cells)) if not cells[unit] and not store.members(unit)], 1)
    return _begun(run, "collect", bool, notes)


def _take_out(run: Run) -> str | None:
    """Take the prompts that are not wanted any more out of the collection; None where only collecting again is exact."""
    store = run.store
    removed = set(removed_prompts(run.prompts, store))
    if not store.layout.features or (store.cells("collect") == RELEASED).any():
        return None
    store.write_rows(0, [None if prompt in removed else prompt for prompt in store.rows])
    if store.layout.moments:
        record = store.records["collect"]
        settings = {name: value for name, value in record["settings"].items() if name != "covariance.accumulate"}
        store.write_record("collect", {**record, "settings": settings, "layout": {**record["layout"], "keep": "features"}})
        store.delete("parts")
    return f"{len(removed)} prompts are taken out; their moments are recomputed from the features that stay (covariance --force)"


def _run_covariance(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.moments import covariance, covariance_units

    begun = Begun(**run.workers.agree(lambda: _begin_covariance(run)))
    run.store.reload()
    yield from map(Note, begun.notes)
    steps = run.store.schedule()
    every = covariance_units(run.store.sites, len(steps))
    mine = ((begun.todo[i], *every[begun.todo[i]]) for i in run.workers.share(len(begun.todo)))
    device = pick_device(run.device or run.workers.device)
    units = covariance(run.store, device, run.config.covariance.accumulate, mine)
    yield from _work(run, "covariance", begun, (f"{site.name} {steps[step].key}" for _, site, step in units))
    if run.workers.rank == 0:
        run.store.delete("staged")


def _begin_covariance(run: Run) -> dict[str, Any]:
    from nullbooth_cli import moments, resources
    from nullbooth_cli.verify import forget_damaged

    store, notes = run.store, []
    store.reload()
    sites, num_steps = store.sites, store.num_steps
    found = stage_states(run.config, run.prompts, store)["covariance"]
    afresh = found.state in ("missing", "stale") or run.force
    released = store.layout.keep == "features" and bool((store.cells("collect") == RELEASED).any())
    if released and (afresh or run.repair):
        raise StageError(
            f"the features in {store.url} were released, and moments cannot be made without them",
            "nullbooth collect --force collects them again",
        )
    if afresh:
        resources.ensure_room(
            store, resources.matrices_nbytes(moments.covariance_units(sites, num_steps)) - store.bytes_of("moments")
        )
        store.write_record("covariance", None)
        store.create_moments(sites, num_steps)
    elif run.repair:
        notes.append(forget_damaged(store, "covariance"))
    begin(run, "covariance", rows=covered_rows(store))
    target = len(store.cells("collect"))
    return _begun(run, "covariance", lambda cell: cell == target, notes)


def release(store: Store) -> str:
    """Remove the features whose moments are complete. Returns what was done."""
    if not store.layout.features:
        return "nothing to release: no features are kept here (collect.keep: moments)"
    before = bytes_of(store, "collect")
    store.release_features([unit for unit, cell in enumerate(store.cells("collect")) if cell])
    freed = (before - bytes_of(store, "collect")) / 1e6
    return f"released {freed:,.1f} MB of features; nullbooth collect --force collects them again"


def _run_project(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.projectors import project, project_units

    section, store = run.config.project, run.store
    rule, value = section.rule()
    begun = Begun(**run.workers.agree(lambda: _begin_project(run)))
    store.reload()
    yield from map(Note, begun.notes)
    num_steps = store.num_steps
    every = project_units(store.sites, section.scope, num_steps)
    units = project(
        store,
        pick_device(run.device or run.workers.device),
        scope=section.scope,
        centred=run.config.covariance.centred,
        rule=rule,
        value=value,
        num_steps=num_steps,
        units=((begun.todo[i], *every[begun.todo[i]]) for i in run.workers.share(len(begun.todo))),
    )
    yield from _work(run, "project", begun, (site.name for _, site, _ in units))


def _begin_project(run: Run) -> dict[str, Any]:
    from nullbooth_cli import resources
    from nullbooth_cli.projectors import num_scopes, project_units

    section, store, notes = run.config.project, run.store, []
    store.reload()
    if run.config.collect.side == "output":
        raise ConfigError(
            "these features are outputs (collect.side: output); a projector must come from the inputs of the edited weight",
            "collect with collect.side: input into another store",
        )
    if section.nullspace_threshold is not None and section.threshold_percent is not None:
        notes.append("nullspace_threshold and threshold_percent are both set: the percentile is in force")
    sites, num_steps = store.sites, store.num_steps
    units = project_units(sites, section.scope, num_steps)
    found = stage_states(run.config, run.prompts, store)["project"]
    if found.state == "missing" or run.force:
        covariance = store.records["covariance"]
        basis = {
            "settings": decomposition_settings(run.config),
            "upstream": covariance["fingerprint"],
            "rows": covariance["rows"]["digest"],
        }
        if found.state != "stale" or store.records.get("decomposition") != basis:
            resources.ensure_room(store, resources.matrices_nbytes(units) - store.bytes_of("projectors"))
            store.write_record("decomposition", None)
            store.write_record("project", None)
            store.create_projectors(sites, {site.name: num_scopes(site, section.scope, num_steps) for site in sites})
            store.write_record("decomposition", basis)
        store.write_record("project", None)
        store.create_progress("project", len(units))
        begin(run, "project")
    return _begun(run, "project", bool, notes)


_RUNNERS = {"schedule": _run_schedule, "collect": _run_collect, "covariance": _run_covariance, "project": _run_project}
