"""Stages schedule and collect under a config: what is begun, what goes on, what is added and taken out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nullbooth_cli.config import CollectSection, Config, fingerprint
from nullbooth_cli.errors import StageError
from nullbooth_cli.events import Event, Note, Progress
from nullbooth_cli.nullspace import tensor_digest
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.runs import Prepared, Run, begin, remaining, state_of, work
from nullbooth_cli.states import added_prompts, bytes_of, own_states, removed_prompts
from nullbooth_cli.steps import Step
from nullbooth_cli.store import RELEASED, Layout, Site, Store


def run_schedule(run: Run) -> Iterator[Event]:
    run.workers.agree(lambda: _write_schedule(run))
    run.store.reload()
    yield Progress("schedule", 1, 1, f"{run.store.num_steps} steps")


def _write_schedule(run: Run) -> None:
    run.store.reload()
    if run.workers.shard and state_of(run, "schedule") == "complete":
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


def load_model(config: Config, device: str | None) -> Any:
    """The pipeline that the config names."""
    from nullbooth_cli import model

    return model.load_pipeline(
        config.model,
        revision=config.revision,
        variant=config.variant,
        dtype=config.dtype,
        local_files_only=config.local_files_only,
        device=model.pick_device(device),
    )


def path_of(config: Config, steps: tuple[Step, ...], pipe: Any) -> Any:
    """Hold a pipeline to the schedule; returns the `denoise.DenoisingPath`."""
    from nullbooth_cli import denoise, images, schedule

    section = config.collect
    scheduler = schedule.build_scheduler(config.schedule.sampler_strategy, pipe.scheduler, config.schedule.timestep_spacing)
    denoise.hold_to_schedule(pipe, scheduler, steps)
    return denoise.DenoisingPath(
        config.schedule.num_denoising_steps,
        steps,
        section.guidance_scale,
        section.height,
        section.width,
        section.seed,
        None if section.images is None else images.image_files(section.images),
    )


def load_path(config: Config, steps: tuple[Step, ...], device: str | None) -> tuple[Any, Any]:
    """Load the model and hold it to the schedule; returns (pipeline, `denoise.DenoisingPath`)."""
    pipe = load_model(config, device)
    return pipe, path_of(config, steps, pipe)


def load_collection(config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], device: str | None) -> Collection:
    """Load the model, hold it to the schedule and find its sites (two steps of one prompt)."""
    pipe, path = load_path(config, steps, device)
    return find_collection(config, pipe, path, prompts[0])


def find_collection(config: Config, pipe: Any, path: Any, prompt: Prompt) -> Collection:
    """Find the sites of a model that is held to the schedule, by two steps of a prompt."""
    from nullbooth_cli import model, recording, sites

    section = config.collect
    projections = sites.find_projections(
        model.denoiser_of(pipe), section.collect_features.chosen(), section.cross_attention_layers
    )
    found = recording.find_sites(pipe, path, projections, section.side, section.branches, prompt, section.tokens_per_prompt)
    return Collection(pipe, path, found)


def layout_of(section: CollectSection, batch_size: int | None = None) -> Layout:
    """How a collection is kept that is begun with these settings."""
    return Layout(section.keep, batch_size or section.batch_size, section.feature_dtype, section.compression)


def run_collect(run: Run) -> Iterator[Event]:
    from nullbooth_cli import batches, denoise, features, model, moments, recording, resources, writer

    steps = run.store.schedule()
    device = model.pick_device(run.device or run.workers.device)
    yield Note(f"loading the model {run.config.model}, to {device}")
    loaded = load_collection(run.config, steps, run.prompts, str(device))
    weights = model.weights_digest(loaded.pipe, encodes=loaded.path.images is not None)
    batch_size = run.config.collect.batch_size
    if run.auto_batch:
        batch_size = batches.largest_batch(loaded.pipe, loaded.path, loaded.found, run.prompts, device)
    prepared = Prepared(**run.workers.agree(lambda: _begin_collect(run, loaded, weights, batch_size, len(steps))))
    run.store.reload()
    for prompt, lost in denoise.cut_words(loaded.pipe, run.prompts):
        prepared.notes.append(f"too long for the tokenizer, '{lost}' is cut off: '{prompt.text}'")
    yield from map(Note, prepared.notes)
    layout, mine = run.store.layout, (prepared.todo[i] for i in run.workers.share(len(prepared.todo)))
    with writer.Writer() as writing:
        sinks: list[recording.Sink] = []
        if layout.features:
            sinks.append(features.FeatureSink(run.store, writing))
        if layout.moments and prepared.todo:
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
        yield from work(run, "collect", prepared, (f"prompts of unit {unit}" for unit in units))
    run.store.reload()


def _begin_collect(run: Run, loaded: Collection, weights: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Make room for what is to be collected, or check that it goes on as it was begun."""
    from nullbooth_cli import features, images, moments, resources
    from nullbooth_cli.verify import forget_damaged

    if loaded.path.images is not None:
        images.require_readable([images.file_of(loaded.path.images, prompt) for prompt in run.prompts])
    store, section, notes = run.store, run.config.collect, []
    store.reload()
    found = own_states(run.config, run.prompts, store)["collect"]
    afresh = found.state == "missing" or run.force
    if run.force and found.only_lost_prompts:
        note = _take_out(run)
        afresh = note is None
        notes.append(note or "sums cannot give back single prompts exactly, and their features are not there: collecting again")
    if not afresh and not run.workers.shard and found.units_done == 0 and store.layout.batch_size != batch_size:
        afresh = True  # the size of a unit is the size of a chunk: it may change as long as nothing has been collected
    sums = moments.sums_nbytes(loaded.sites, num_steps)
    if afresh:
        layout = layout_of(section, batch_size)
        needed = features.features_nbytes(loaded.sites, num_steps, len(run.prompts), layout.dtype) if layout.features else 0
        needed += 2 * sums * run.workers.size if layout.moments else 0
        resources.ensure_room(store, needed - bytes_of(store, "collect"))
        store.write_record("collect", None)
        store.create_collection(loaded.sites, num_steps, len(run.prompts), layout)
        store.write_rows(0, run.prompts)
        tensors = {p.weight: tensor_digest(p.module.weight, run.config.dtype) for p in loaded.found.owners}
        begin(run, "collect", {"weights": weights}, layout=vars(layout), tensors=tensors)
        return remaining(run, "collect", bool, notes)
    layout = store.layout
    require_same_model(run.config, store, loaded, weights)
    if layout.batch_size != batch_size:
        notes.append(f"batch_size stays {layout.batch_size} in this store: the size of its units (now {batch_size} is asked for)")
    for part in store.parts() if layout.moments else ():
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
    return remaining(run, "collect", bool, notes)


def require_same_model(config: Config, store: Store, loaded: Collection, weights: str) -> None:
    """Raise StageError unless a collection was begun with this model: its weights, its layers and their sharing."""
    recorded = store.records["collect"]["weights"]
    if recorded != weights or loaded.sites != store.sites:
        changed = f"weights {recorded} -> {weights}" if recorded != weights else "the layers and their sharing"
        raise StageError(
            f"the model {config.model} is not the one this collection was begun with\n  {changed}",
            "nullbooth collect --force",
        )


def _take_out(run: Run) -> str | None:
    """Take the prompts that are not wanted any more out of the collection; None where only collecting again is exact."""
    store = run.store
    removed = set(removed_prompts(run.prompts, store))
    if not store.layout.features or (store.cells("collect") == RELEASED).any():
        return None
    if store.layout.moments:
        record = store.records["collect"]
        settings = {name: value for name, value in record["settings"].items() if name != "covariance.accumulate"}
        store.write_record("collect", {**record, "settings": settings, "layout": {**record["layout"], "keep": "features"}})
        store.delete("parts")
    # Last: once they are gone nothing tells a later run that the parts still hold them.
    store.write_rows(0, [None if prompt in removed else prompt for prompt in store.rows])
    return f"{len(removed)} prompts are taken out; their moments are recomputed from the features that stay (covariance --force)"


def release(store: Store) -> str:
    """Remove the features whose moments are complete. Returns what was done."""
    if not store.layout.features:
        return "nothing to release: no features are kept here (collect.keep: moments)"
    before = bytes_of(store, "collect")
    store.release_features([unit for unit, cell in enumerate(store.cells("collect")) if cell])
    freed = (before - bytes_of(store, "collect")) / 1e6
    return f"released {freed:,.1f} MB of features; nullbooth collect --force collects them again"
