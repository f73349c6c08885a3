"""The stages: how each one is begun, continued or refused, and what it would take.

Running a complete stage says so and does nothing; a partial one goes on; a stale one is refused unless forced.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullbooth_cli.config import STAGES, Config, decomposition_settings, fingerprint
from nullbooth_cli.errors import ConfigError, ResourceError, StageError
from nullbooth_cli.events import Event, Note, Progress
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.states import FOLDERS, StageState, listed, require, stage_states, wanted_settings
from nullbooth_cli.steps import Step
from nullbooth_cli.store import Site, Store


@dataclass(frozen=True)
class Run:
    """What a command was asked to do. `store` is open for writing."""

    config: Config
    prompts: tuple[Prompt, ...]
    store: Store
    device: str | None = None
    force: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a stage would do: units, and bytes it would add against those that are free."""

    stage: str
    units_done: int
    units_total: int
    bytes_needed: int
    bytes_free: int
    device: str
    device_bytes_free: int


def execute(stage: str, run: Run) -> Iterator[Event]:
    """Run one stage: begin it, go on with it, or say that it is complete. Raises StageError where that is refused."""
    now = stage_states(run.config, run.prompts, run.store)
    if stage == "collect" and now["schedule"].state == "missing":
        yield from execute("schedule", run)
        now = stage_states(run.config, run.prompts, run.store)
    for upstream in STAGES[: STAGES.index(stage)]:
        require(now, upstream, run.store.path)
    found = now[stage]
    if found.state == "complete" and not run.force:
        yield Note(f"{stage} is complete: {found.units_total} unit{'s' if found.units_total != 1 else ''} in {run.store.path}")
        return
    if found.state == "stale" and not run.force:
        size = run.store.bytes_of(FOLDERS[stage])
        raise StageError(
            f"{stage} in {run.store.path} was made with other settings or inputs{listed(found)}",
            f"add --force to replace its {size / 1e6:,.1f} MB, or name another store with -s",
        )
    afresh = found.state == "missing" or run.force
    yield from _RUNNERS[stage](run, afresh, found)


def _begin(run: Run, stage: str, extra: dict[str, Any] | None = None) -> None:
    """Write the record that marks a stage as begun under the current config."""
    records = run.store.records
    record = {
        "settings": wanted_settings(run.config, run.prompts, stage),
        "upstream": {name: records[name]["fingerprint"] for name in STAGES[: STAGES.index(stage)]},
        **(extra or {}),
    }
    run.store.write_config(run.config.model_dump())
    run.store.write_record(stage, {**record, "fingerprint": fingerprint(record)})


def _todo(run: Run, stage: str) -> list[int]:
    return [unit for unit, done in enumerate(run.store.progress(stage)) if not done][: run.limit]


def _run_schedule(run: Run, afresh: bool, found: StageState) -> Iterator[Event]:
    scheduler, steps = _compute_steps(run.config, len(run.prompts))
    run.store.write_record("schedule", None)
    run.store.write_schedule(steps)
    values = fingerprint([(step.timestep, step.sigma) for step in steps])
    _begin(run, "schedule", {"scheduler": scheduler, "values": values})
    yield Progress("schedule", 1, 1, f"{len(steps)} steps")


def _compute_steps(config: Config, num_prompts: int) -> tuple[str, tuple[Step, ...]]:
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
class _Collection:
    """A loaded model, ready to be recorded."""

    pipe: Any
    path: Any
    sites: tuple[Site, ...]
    owners: dict[Any, Site] = field(repr=False)


def _load_collection(config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], device: str | None) -> _Collection:
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
    found, owners = features.find_sites(pipe, path, projections, section.side, section.branches, prompts[0])
    return _Collection(pipe, path, found, owners)


def _run_collect(run: Run, afresh: bool, found: StageState) -> Iterator[Event]:
    from nullbooth_cli import denoise, features, model

    section = run.config.collect
    steps = run.store.schedule()
    loaded = _load_collection(run.config, steps, run.prompts, run.device)
    weights = model.weights_digest(loaded.pipe)
    needed = features.features_nbytes(loaded.sites, len(steps), len(run.prompts), section.feature_dtype)
    # The size of a unit is the size of a chunk. It may change as long as nothing has been collected.
    if afresh or found.units_done == 0:
        ensure_room(run.store.path, needed - run.store.bytes_of("features"))
        run.store.write_record("collect", None)
        run.store.write_prompts(run.prompts)
        run.store.create_features(
            loaded.sites, len(steps), len(run.prompts), section.batch_size, section.feature_dtype, section.compression
        )
        _begin(run, "collect", {"weights": weights})
    else:
        ensure_room(run.store.path, needed - needed * found.units_done // (found.units_total or 1))
        recorded = run.store.records["collect"]["weights"]
        if recorded != weights or loaded.sites != run.store.sites:
            changed = f"weights {recorded} -> {weights}" if recorded != weights else "the layers and their sharing"
            raise StageError(
                f"the model {run.config.model} is not the one this collection was begun with\n  {changed}",
                "nullbooth collect --force",
            )
        batch_size, _ = run.store.feature_layout()
        if batch_size != section.batch_size:
            yield Note(
                f"batch_size stays {batch_size} in this store: the size of its chunks (the config says {section.batch_size})"
            )
    for prompt, lost in denoise.cut_words(loaded.pipe, run.prompts):
        yield Note(f"too long for the tokenizer, '{lost}' is cut off: '{prompt.text}'")
    progress = run.store.progress("collect")
    done, total = int(progress.sum()), len(progress)
    todo = _todo(run, "collect")
    for unit in features.collect(run.store, loaded.pipe, loaded.path, run.prompts, loaded.owners, section.branches, todo):
        done += 1
        yield Progress("collect", done, total, f"prompts of unit {unit}")


def _run_covariance(run: Run, afresh: bool, found: StageState) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.moments import covariance, covariance_units

    device = pick_device(run.device)
    sites, steps = run.store.sites, run.store.schedule()
    units = covariance_units(sites, len(steps))
    if afresh:
        ensure_room(run.store.path, _matrices_nbytes(units) - run.store.bytes_of("moments"))
        run.store.write_record("covariance", None)
        run.store.create_moments(sites, len(steps))
        _begin(run, "covariance")
    num_chunks = len(run.store.progress("collect"))
    todo = [(unit, *units[unit]) for unit in _todo(run, "covariance")]
    done = int(run.store.progress("covariance").sum())
    for _, site, step in covariance(run.store, device, run.config.covariance.accumulate, num_chunks, todo):
        done += 1
        yield Progress("covariance", done, len(units), f"{site.name} {steps[step].key}")


def _run_project(run: Run, afresh: bool, found: StageState) -> Iterator[Event]:
    from nullbooth_cli.model import pick_device
    from nullbooth_cli.projectors import num_scopes, project, project_units

    section, store = run.config.project, run.store
    if run.config.collect.side == "output":
        raise ConfigError(
            "these features are outputs (collect.side: output); a projector must come from the inputs of the edited weight",
            "collect with collect.side: input into another store",
        )
    device = pick_device(run.device)
    rule, value = section.rule()
    if section.nullspace_threshold is not None and section.threshold_percent is not None:
        yield Note("nullspace_threshold and threshold_percent are both set: the percentile is in force")
    sites, num_steps = store.sites, len(store.schedule())
    units = project_units(sites, section.scope, num_steps)
    if afresh:
        basis = {"settings": decomposition_settings(run.config), "upstream": store.records["covariance"]["fingerprint"]}
        only_recut = found.state == "stale" and store.records.get("decomposition") == basis
        store.write_record("project", None)
        if not only_recut:
            ensure_room(store.path, _matrices_nbytes(units) - store.bytes_of("projectors"))
            store.write_record("decomposition", None)
            store.create_projectors(sites, {site.name: num_scopes(site, section.scope, num_steps) for site in sites})
            store.write_record("decomposition", basis)
        store.create_progress("project", len(units))
        _begin(run, "project")
    todo = [(unit, *units[unit]) for unit in _todo(run, "project")]
    done = int(store.progress("project").sum())
    cut = project(
        store,
        device,
        scope=section.scope,
        centred=run.config.covariance.centred,
        rule=rule,
        value=value,
        num_steps=num_steps,
        units=todo,
    )
    for _, site, _ in cut:
        done += 1
        yield Progress("project", done, len(units), site.name)


_RUNNERS = {"schedule": _run_schedule, "collect": _run_collect, "covariance": _run_covariance, "project": _run_project}


def free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def ensure_room(path: Path, needed: int) -> None:
    """Raise ResourceError unless so many bytes are free where the store is."""
    free = free_bytes(path)
    if needed > free:
        raise ResourceError(
            f"{path} needs {needed:,} bytes, {free:,} are free",
            "free some space, keep fewer prompts, layers or steps, or name another place with -s",
        )


def plan(
    wanted: tuple[str, ...], config: Config, prompts: tuple[Prompt, ...], store: Store | None, path: Path, device: str | None
) -> list[Plan]:
    """What running these stages would do, without writing anything.

    Cost: loads the model and runs two steps of one prompt, unless a current collection says which sites there are.
    """
    from nullbooth_cli import features, model, moments, projectors

    found = stage_states(config, prompts, store)
    chosen = model.pick_device(device)
    if store is not None and found["schedule"].state == "complete":
        steps = store.schedule()
    else:
        _, steps = _compute_steps(config, len(prompts))
    if wanted == ("schedule",):
        sites: tuple[Site, ...] = ()
    elif store is not None and found["collect"].state in ("complete", "partial"):
        sites = store.sites
    else:
        sites = _load_collection(config, steps, prompts, device).sites
    covariance_units = moments.covariance_units(sites, len(steps))
    project_units = projectors.project_units(sites, config.project.scope, len(steps))
    totals = {
        "schedule": (1, len(steps) * 32),
        "collect": (
            -(-len(prompts) // config.collect.batch_size),
            features.features_nbytes(sites, len(steps), len(prompts), config.collect.feature_dtype),
        ),
        "covariance": (len(covariance_units), _matrices_nbytes(covariance_units)),
        "project": (len(project_units), _matrices_nbytes(project_units)),
    }
    plans = []
    for stage in wanted:
        total, needed = totals[stage]
        done = 0
        if found[stage].state in ("complete", "partial"):
            done, total = found[stage].units_done, found[stage].units_total or total
        needed = needed * (total - done) // total
        plans.append(Plan(stage, done, total, needed, free_bytes(path), str(chosen), model.free_memory(chosen)))
    return plans


def _matrices_nbytes(units: list[tuple[Site, int]]) -> int:
    """A [D, D] matrix and a [D] vector in float64 for every unit."""
    return sum(site.dim * (site.dim + 1) * 8 for site, _ in units)
