"""The stages: how each one is started, resumed or refused.

    for event in run_stages(STAGES, run):
        ...

Running a complete stage reports so and does nothing; a partial one is resumed; a stale one is refused unless forced. Of several
processes one decides and prepares, and all of them work (`workers`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from nullbooth_cli.collect.open_model import require_call, scheduler_of
from nullbooth_cli.datatypes import HELDOUT, Prompt
from nullbooth_cli.errors import ConfigError, Rerun, StageError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.pipeline.collect import run_collect
from nullbooth_cli.pipeline.covariance import run_covariance
from nullbooth_cli.pipeline.project import decomposition_basis, pooling_of, require_inputs, run_project
from nullbooth_cli.pipeline.run import Run, StateCache, decide
from nullbooth_cli.pipeline.same_model import recognise_model
from nullbooth_cli.pipeline.schedule import run_schedule
from nullbooth_cli.pipeline.state import DONE, HELDOUT_STAGES, bytes_of, reasons_text, require
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import STAGES, Config, public_settings
from nullbooth_cli.settings.knowledge import attention_prompts, heldout_config, heldout_prompts, require_disjoint
from nullbooth_cli.store import Store, listed_tasks
from nullbooth_cli.store.pieces import Damage
from nullbooth_cli.store.verify import require_tasks_whole, run_checks

REPAIRABLE = ("collect", "covariance")
BeforeReplacing = Callable[[str, int], None]


def run_stages(stages: Sequence[str], run: Run, before_replacing: BeforeReplacing = lambda *_: None) -> Iterator[Event]:
    """Run stages in order.

    With `run.force` a single stage is done again whatever its state, and of several those that are stale. Before finished units
    are replaced, `before_replacing(stage, number of units)` may raise. Raises StageError for a stage that is refused, ConfigError
    for a request that has no meaning for these stages.
    """
    check_request(stages, limit=run.limit, repair=run.repair)
    for stage in stages:
        force = False
        if run.force:
            stale, units_done = decide(run, partial(_to_replace, replace(run, stage=stage), stage))
            force = bool(stale) or len(stages) == 1
            if force and units_done:
                before_replacing(stage, units_done)
        yield from execute(stage, replace(run, force=force, repair=run.repair and stage in REPAIRABLE))
    if run.repair:
        decide(run, lambda: require_tasks_whole(run.store))  # no stage records them again


def check_request(stages: Sequence[str], *, limit: int | None, repair: bool) -> None:
    """Raise ConfigError for stages that do not exist, and for a limit or a repair that does not apply to them."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ConfigError(f"no such stage: {unknown[0]}" if unknown else "no stage is named", f"stages are {', '.join(STAGES)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, which leaves no unit to do", "set limit to 1 or more")
    if limit is not None and len(stages) > 1:
        raise ConfigError("limit counts the units of one stage", "name one stage, or set no limit")
    if repair and not set(stages) & set(REPAIRABLE):
        raise ConfigError(f"{', '.join(stages)} cannot be repaired", f"name {' or '.join(REPAIRABLE)}, or use force")


def check_possible(stages: Sequence[str], config: Config, prompts: tuple[Prompt, ...], *, device: str | None = None) -> None:
    """Raise for what is wrong with a request, as far as that is known before a store is made or a model is loaded.

    ResourceError for a device that is not there; ConfigError for a collection that cannot be projected, for prompts that are both
    preserved and held out, for attention maps of other prompts, and (with a new store) for a model that lacks its config files
    and for inputs that its pipeline class is not given, does not take or that cannot be read; ModelError for a class that cannot
    be used. Cost: with a new store, a read of those files; otherwise none.
    """
    if device is not None:
        from nullbooth_cli.model.device import pick_device

        pick_device(device)
    if "project" in stages:
        require_inputs(config)
    require_disjoint(heldout_prompts(config), prompts)
    if "collect" in stages and config.collect.visual_attention_map:
        attention_prompts(config, prompts)
    if stages[0] in ("schedule", "collect") and not Store.exists(config.store, config.storage_options):
        require_call(config)
        read_inputs(config.collect.pipeline_inputs)
        scheduler_of(config)


def _to_replace(run: Run, stage: str) -> list[int]:
    found = run.states().stages[stage]
    return [found.state == "stale", found.units_done]


def execute(stage: str, run: Run) -> Iterator[Event]:
    """Run one stage: start it, resume it, or report that it is complete. Raises StageError where that is refused.

    Collect writes the schedule first if there is none. Where collect folds moments, covariance follows it.
    """
    run = replace(run, stage=stage)
    if stage == "collect" and decide(run, lambda: "schedule" not in run.store.records):
        yield from execute("schedule", run)
    wants_maps = stage == "collect" and run.config.collect.visual_attention_map
    if wants_maps:
        attention_prompts(run.config, run.prompts)  # raises for a prompt without maps before hours are spent
    run.store.reload()
    at_work = replace(run, force=run.force or decide(run, lambda: _has_nothing_to_lose(stage, run)))
    complete = decide(run, lambda: _refuse_or_report(stage, at_work))
    if complete:
        yield Note(complete)
        if stage == "collect":
            yield from map(Note, decide(run, lambda: recognise_model(run)))
    else:
        decide(run, lambda: _require_tasks_fit(stage, at_work))
        if stage == "collect":
            pooling_of(run.config).in_range(run.store.schedule())  # raises before the model is loaded
        yield from _RUNNERS[stage](at_work)
    if run.config.heldout_prompts is not None and stage in HELDOUT_STAGES and not (run.limit and not complete):
        yield from _execute_heldout(stage, run)
    if wants_maps and decide(run, lambda: _maps_are_left(run)):
        from nullbooth_cli.pipeline.attention import run_attention

        yield from run_attention(run)
    folded = stage == "collect" and run.store.layout.keeps_moments and not run.workers.shard
    if folded and decide(run, lambda: _sums_are_left(run, worked=not complete)):
        yield from run_covariance(replace(run, stage="covariance", limit=None, repair=False))


def _execute_heldout(stage: str, run: Run) -> Iterator[Event]:
    """The same stage for the held-out prompts, into their own store: with force only where they are stale or damaged."""
    found = decide(run, lambda: _prepare_heldout(run, stage))
    force, repair = run.force and "stale" in (found["collect"], found["damage"]), run.repair and found[stage] != "missing"
    if found["covariance"] in DONE and not (repair or force):
        return
    store = run.store.heldout(write=True)
    assert store is not None
    inner = replace(
        run,
        config=heldout_config(run.config, batch_size=run.store.layout.batch_size),
        prompts=heldout_prompts(run.config),
        store=store,
        force=force,
        repair=repair,
        auto_batch=False,
        cache=StateCache(),
    )
    for event in execute(stage, inner):
        if isinstance(event, Note):
            yield Note(f"held-out prompts: {event.text}")
        elif event.stage == stage:
            yield replace(event, stage="held-out")
    run.cache.forget()


def _prepare_heldout(run: Run, stage: str) -> dict[str, str]:
    """Make the store of the held-out prompts, and give it this one's schedule; returns the states of its stages.

    `damage` is "stale" if a forced stage is damaged there. Cost: one read of what it wrote.
    """
    require_disjoint(heldout_prompts(run.config), run.prompts)
    settings = public_settings(heldout_config(run.config, batch_size=run.store.layout.batch_size))
    store = run.store.inside_or_create(HELDOUT, settings)
    if give_schedule(run.store, store):
        run.cache.forget()
    damaged = run.force and any(isinstance(found, Damage) for found in run_checks(store, stage))
    return {name: found.state for name, found in run.states().heldout.items()} | {"damage": "stale" if damaged else ""}


def give_schedule(store: Store, inner: Store) -> bool:
    """Give a store the schedule of the one around it; returns whether it had another."""
    schedule = store.records["schedule"]
    if inner.records.get("schedule") == schedule:
        return False
    inner.write_record("schedule", None)
    inner.write_schedule(store.schedule())
    inner.write_record("schedule", schedule)
    return True


def _maps_are_left(run: Run) -> bool:
    """Whether attention maps of a finished collection must be recorded, or checked for a repair."""
    found = run.states()
    maps = found.stages["collect"].attention
    return found.own["collect"].is_done and (run.repair or maps is None or not maps.is_done)


def _sums_are_left(run: Run, *, worked: bool) -> bool:
    """Whether partial sums must still be added up: after work, or after a kill."""
    own = run.states().own
    return own["collect"].state == "complete" and (worked or own["covariance"].state in ("missing", "partial"))


def _has_nothing_to_lose(stage: str, run: Run) -> bool:
    """Whether a stage was started with other settings, and its work until now is nothing that could serve them.

    That is no unit, and of project also some: cuts of a stage that is not complete serve nobody, and decompositions stay.
    """
    if run.repair or run.workers.shard:
        return False
    found = run.states().own[stage]
    if found.state != "stale":
        return False
    if stage == "project" and run.store.records.get("decomposition") == decomposition_basis(run.config, run.store):
        return found.units_done < (found.units_total or 0)
    return found.units_done == 0


def _refuse_or_report(stage: str, run: Run) -> str | None:
    """Raise StageError if a stage cannot run now. Returns a sentence if there is nothing to do, else None."""
    if run.repair:
        _reset_damaged(run, stage)
    states = run.states()
    for upstream in STAGES[: STAGES.index(stage)]:
        require(states.stages, upstream, run.store.url)
    found, together = states.own[stage], states.stages[stage]
    if found.is_done and together.state == "stale" and not run.repair:
        if run.force:
            return f"{stage} is complete; only its held-out prompts are done again"
        found = together
    if run.repair and found.state in ("missing", "stale"):
        if stage in states.damaged:
            raise states.damaged[stage]
        raise StageError(f"{stage} in {run.store.url} is {found.state}: there is nothing to repair", Rerun(stage))
    if run.force or run.repair:
        return None
    units = counted(found.units_total or 0, "unit")
    if found.state == "complete":
        return f"{stage} is complete: {units} in {run.store.url}"
    if found.state == "released":
        return f"{stage} is done: {units}, whose features were released; force collects them again"
    if found.state == "stale":
        size = bytes_of(run.store, stage)
        way = "to take them out" if stage == "collect" and found.only_lost_prompts else f"to replace its {size / 1e6:,.1f} MB"
        raise StageError(
            f"{stage} in {run.store.url} was made with other settings or inputs{reasons_text(found)}",
            Rerun(stage, force=True, otherwise=f" {way}, or set store to another place"),
        )
    return None


def _require_tasks_fit(stage: str, run: Run) -> None:
    """Raise ConfigError if a stage is to be done again that the tasks of the store build on as it is now.

    Prompts that are taken out change nothing for them, and covariance only with other settings.
    """
    names = [entry.name for entry in listed_tasks(run.store)]
    if not (names and run.force and stage != "project"):
        return
    found = run.states().own[stage]
    if {"schedule": True, "collect": not found.only_lost_prompts, "covariance": bool(found.stale_because)}[stage]:
        raise ConfigError(
            f"{run.store.url} remembers {', '.join(names)}, and with another {stage} it would no longer fit{reasons_text(found)}",
            "forget the tasks first, or set store to another place",
        )


def _reset_damaged(run: Run, stage: str) -> None:
    """Mark the units of damaged cells as not done: until then the state of the stage cannot be read."""
    run.store.progress.reset_damaged(stage)
    if stage == "collect":
        run.store.progress.reset_damaged("attention")
    if run.config.heldout_prompts is not None and (inner := run.store.heldout(write=True)) is not None:
        inner.progress.reset_damaged(stage)
    run.cache.forget()


_RUNNERS = {"schedule": run_schedule, "collect": run_collect, "covariance": run_covariance, "project": run_project}
