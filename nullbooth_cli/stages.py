"""The stages: how each one is run, continued or refused.

Running a complete stage says so and does nothing; a partial one goes on; a stale one is refused unless forced. Of several
processes one decides and prepares; all of them work (`workers`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nullbooth_cli.collecting import recognise, run_collect, run_schedule
from nullbooth_cli.config import STAGES, Config, public_settings
from nullbooth_cli.errors import StageError
from nullbooth_cli.events import Event, Note
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.runs import Prepared, Run, begin, remaining, state_of, work
from nullbooth_cli.states import (
    DONE,
    HELDOUT_STAGES,
    attention_prompts,
    bytes_of,
    covered_rows,
    decomposing,
    decomposition_basis,
    heldout_config,
    heldout_prompts,
    listed,
    own_states,
    pooling_of,
    require,
    require_inputs,
    require_unknown,
    stage_states,
)
from nullbooth_cli.steps import Step
from nullbooth_cli.store import HELDOUT, RELEASED


def execute(stage: str, run: Run) -> Iterator[Event]:
    """Run one stage: begin it, go on with it, or say that it is complete. Raises StageError where that is refused."""
    if stage == "collect" and run.workers.agree(lambda: state_of(run, "schedule") == "missing"):
        yield from execute("schedule", run)
    wants_maps = stage == "collect" and run.config.collect.visual_attention_map
    if wants_maps:
        attention_prompts(run.config, run.prompts)  # refuses what cannot be drawn before hours are spent
    run.store.reload()
    said = run.workers.agree(lambda: _refuse_or_say(stage, run))
    if said:
        yield Note(said)
        if stage == "collect":
            yield from map(Note, run.workers.agree(lambda: recognise(run)))
    else:
        yield from _RUNNERS[stage](run)
    if run.config.heldout_prompts is not None and stage in HELDOUT_STAGES and not (run.limit and not said):
        yield from _execute_heldout(stage, run)
    if wants_maps and state_of(run, stage) in DONE:
        from nullbooth_cli.attention import run_attention

        yield from run_attention(run)
    folded = stage == "collect" and run.store.layout.moments and not run.workers.shard
    if folded and run.workers.agree(lambda: _parts_are_left(run, worked=not said)):
        yield from _run_covariance(replace(run, limit=None, repair=False))


def _execute_heldout(stage: str, run: Run) -> Iterator[Event]:
    """The same stage for the held-out prompts, into their own store: with --force only where they are stale."""
    prompts = heldout_prompts(run.config)
    config = heldout_config(run.config)
    config = config.model_copy(update={"collect": config.collect.model_copy(update={"batch_size": run.store.layout.batch_size})})
    found = run.workers.agree(lambda: _prepare_heldout(run, config, prompts))
    store = run.store.heldout(write=True)
    assert store is not None
    stale, repair = found["collect"] == "stale", run.repair and found[stage] != "missing"
    if found["covariance"] in DONE and not repair:
        return
    inner = replace(run, config=config, prompts=prompts, store=store, force=run.force and stale, repair=repair, auto_batch=False)
    for event in execute(stage, inner):
        if isinstance(event, Note):
            yield Note(f"held-out prompts: {event.text}")
        elif event.stage == stage:
            yield replace(event, stage=HELDOUT)


def _prepare_heldout(run: Run, config: Config, prompts: tuple[Prompt, ...]) -> dict[str, str]:
    """Make the store of the held-out prompts, give it this one's schedule; returns the states of its stages."""
    require_unknown(prompts, run.prompts)
    store = run.store.heldout_or_create(public_settings(config))
    schedule = run.store.records["schedule"]
    if store.records.get("schedule") != schedule:
        store.write_record("schedule", None)
        store.write_schedule(run.store.schedule())
        store.write_record("schedule", schedule)
    return {stage: found.state for stage, found in own_states(config, prompts, store).items()}


def _parts_are_left(run: Run, *, worked: bool) -> bool:
    """Whether moments that were folded while the model ran are still to be added up: after work, or after a kill."""
    now = own_states(run.config, run.prompts, run.store)
    return now["collect"].state == "complete" and (worked or now["covariance"].state in ("missing", "partial"))


def _refuse_or_say(stage: str, run: Run) -> str | None:
    """Raise StageError if a stage cannot run now; say so if there is nothing to do."""
    if run.repair:
        run.store.mend_cells(stage)
    now = stage_states(run.config, run.prompts, run.store)
    for upstream in STAGES[: STAGES.index(stage)]:
        require(now, upstream, run.store.url)
    found = own_states(run.config, run.prompts, run.store)[stage]
    if found.is_done and now[stage].state == "stale" and not run.repair:
        if run.force:
            return f"{stage} is complete; only its held-out prompts are done again"
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
        way = "to take them out" if stage == "collect" and found.only_lost_prompts else f"to replace its {size / 1e6:,.1f} MB"
        raise StageError(
            f"{stage} in {run.store.url} was made with other settings or inputs{listed(found)}",
            f"add --force {way}, or name another store with -s",
        )
    return None


def _run_covariance(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.moments import covariance, covariance_units

    prepared = Prepared(**run.workers.agree(lambda: _begin_covariance(run)))
    run.store.reload()
    yield from map(Note, prepared.notes)
    steps = run.store.schedule()
    every = covariance_units(run.store.sites, len(steps), run.store.layout)
    mine = ((prepared.todo[i], *every[prepared.todo[i]]) for i in run.workers.share(len(prepared.todo)))
    device = pick_device(run.device or run.workers.device)
    units = covariance(run.store, device, run.config.covariance.accumulate, mine)
    yield from work(run, "covariance", prepared, (f"{site.name} {_keys(steps, block)}" for _, site, block in units))
    if run.workers.rank == 0:
        run.store.delete("staged")


def _keys(steps: Sequence[Step], block: range) -> str:
    return " to ".join(steps[t].key for t in dict.fromkeys((block[0], block[-1])))


def _begin_covariance(run: Run) -> dict[str, Any]:
    from nullbooth_cli import moments, resources
    from nullbooth_cli.verify import forget_damaged

    store, notes = run.store, []
    store.reload()
    sites, num_steps = store.sites, store.num_steps
    found = own_states(run.config, run.prompts, store)["covariance"]
    afresh = found.state in ("missing", "stale") or run.force
    released = store.layout.keep == "features" and bool((store.cells("collect") == RELEASED).any())
    if released and (afresh or run.repair):
        raise StageError(
            f"the features in {store.url} were released, and moments cannot be made without them",
            "nullbooth collect --force collects them again",
        )
    if afresh:
        resources.ensure_room(store, moments.sums_nbytes(sites, num_steps) - store.bytes_of("moments"))
        store.write_record("covariance", None)
        store.create_moments(sites, num_steps, store.layout)
    elif run.repair:
        notes.append(forget_damaged(store, "covariance"))
    begin(run, "covariance", rows=covered_rows(store))
    target = len(store.cells("collect"))
    return remaining(run, "covariance", lambda cell: cell == target, notes)


def _run_project(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.projectors import project

    store = run.store
    prepared = Prepared(**run.workers.agree(lambda: _begin_project(run)))
    store.reload()
    yield from map(Note, prepared.notes)
    settings = decomposing(run.config, store)
    every = settings.pooling.units(store.sites, settings.steps)
    mine = ((prepared.todo[i], *every[prepared.todo[i]]) for i in run.workers.share(len(prepared.todo)))
    device = pick_device(run.device or run.workers.device)
    section = run.config.project
    units = project(store, device, settings, *section.rule(), mine, may_be_empty=section.empty == "freeze")
    yield from work(run, "project", prepared, (site.name for _, site, _ in units))


def _begin_project(run: Run) -> dict[str, Any]:
    from nullbooth_cli import resources

    section, store, notes = run.config.project, run.store, []
    store.reload()
    require_inputs(run.config)
    if section.nullspace_threshold is not None and section.threshold_percent is not None:
        notes.append("nullspace_threshold and threshold_percent are both set: the percentile is in force")
    sites, steps, pooling = store.sites, store.schedule(), pooling_of(run.config)
    units = pooling.units(sites, steps)
    found = own_states(run.config, run.prompts, store)["project"]
    if found.state == "missing" or run.force:
        basis = decomposition_basis(run.config, store)
        if found.state != "stale" or store.records.get("decomposition") != basis:
            resources.ensure_room(store, resources.decompositions_nbytes(units) - store.bytes_of("projectors"))
            store.write_record("decomposition", None)
            store.write_record("project", None)
            store.create_projectors(sites, Counter(site.name for site, _ in units))
            store.write_record("decomposition", basis)
        store.write_record("project", None)
        store.create_progress("project", len(units))
        begin(run, "project")
    prepared = remaining(run, "project", bool, notes)
    prepared["todo"].sort(key=lambda unit: units[unit][0].dim)  # those of one size are decomposed together
    return prepared


_RUNNERS = {"schedule": run_schedule, "collect": run_collect, "covariance": _run_covariance, "project": _run_project}
