"""The stages: how each one is run, continued or refused.

Running a complete stage says so and does nothing; a partial one goes on; a stale one is refused unless forced. Of several
processes one decides and prepares; all of them work (`workers`).
"""

from collections.abc import Iterator
from dataclasses import replace

from nullbooth_cli.datatypes import HELDOUT, Prompt
from nullbooth_cli.errors import StageError
from nullbooth_cli.pipeline.collect import recognise_model, run_collect
from nullbooth_cli.pipeline.covariance import run_covariance
from nullbooth_cli.pipeline.project import run_project
from nullbooth_cli.pipeline.run import Run, state_of
from nullbooth_cli.pipeline.schedule import run_schedule
from nullbooth_cli.pipeline.state import DONE, HELDOUT_STAGES, bytes_of, own_states, reasons_text, require, stage_states
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import STAGES, Config, public_settings
from nullbooth_cli.settings.knowledge import attention_prompts, heldout_config, heldout_prompts, require_disjoint


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
            yield from map(Note, run.workers.agree(lambda: recognise_model(run)))
    else:
        yield from _RUNNERS[stage](run)
    if run.config.heldout_prompts is not None and stage in HELDOUT_STAGES and not (run.limit and not said):
        yield from _execute_heldout(stage, run)
    if wants_maps and state_of(run, stage) in DONE:
        from nullbooth_cli.pipeline.attention import run_attention

        yield from run_attention(run)
    folded = stage == "collect" and run.store.layout.moments and not run.workers.shard
    if folded and run.workers.agree(lambda: _parts_are_left(run, worked=not said)):
        yield from run_covariance(replace(run, limit=None, repair=False))


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
    require_disjoint(prompts, run.prompts)
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
        run.store.progress.reset_damaged(stage)
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
            f"{stage} in {run.store.url} was made with other settings or inputs{reasons_text(found)}",
            f"add --force {way}, or name another store with -s",
        )
    return None


_RUNNERS = {"schedule": run_schedule, "collect": run_collect, "covariance": run_covariance, "project": run_project}
