"""Stage collect under a config: what starts, what resumes, what is added and taken out."""

from collections.abc import Iterator
from typing import Any

from nullbooth_cli.collect.open_model import Collection, load_collection, load_path
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import StageError
from nullbooth_cli.pipeline.run import Prepared, Run, layout_of, model_renamed, report_units, start_stage, units_to_do
from nullbooth_cli.pipeline.state import added_prompts, bytes_of, own_states, removed_prompts
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import RELEASED, Store, create_collection, extend_collection, release_units
from nullbooth_cli.tensors import tensor_digest


def run_collect(run: Run) -> Iterator[Event]:
    from nullbooth_cli.collect.batch_size import largest_batch
    from nullbooth_cli.collect.sinks import FeatureSink, MomentSink, Sink
    from nullbooth_cli.collect.units import collect as collect_stores
    from nullbooth_cli.model import denoise, load
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.store import background

    steps = run.store.schedule()
    device = pick_device(run.device or run.workers.device)
    yield Note(f"loading the model {run.config.model}, to {device}")
    loaded = load_collection(run.config, steps, run.prompts, str(device))
    weights = load.weights_digest(loaded.pipe, encodes=loaded.path.images is not None)
    batch_size = run.config.collect.batch_size
    if run.auto_batch:
        batch_size = largest_batch(loaded.pipe, loaded.path, loaded.found, run.prompts, device)
    prepared = Prepared(**run.workers.agree(lambda: _begin_collect(run, loaded, weights, batch_size, len(steps))))
    run.store.reload()
    for prompt, lost in denoise.truncated_prompts(loaded.pipe, run.prompts):
        prepared.notes.append(f"too long for the tokenizer, '{lost}' is cut off: '{prompt.text}'")
    yield from map(Note, prepared.notes)
    layout, mine = run.store.layout, (prepared.todo[i] for i in run.workers.share(len(prepared.todo)))
    with background.Writer() as writing:
        sinks: list[Sink] = []
        if layout.features:
            sinks.append(FeatureSink(run.store, writing))
        if layout.moments and prepared.todo:
            place = space.place_for_sums(loaded.sites, len(steps), device)
            if place != device:
                yield Note(f"the sums do not fit {device} beside the model: they stay in host memory")
            part = run.store.moments.part(run.workers.part)
            if not part.units:
                part.create(loaded.sites, len(steps))
            sinks.append(MomentSink(part, loaded.sites, len(steps), place, run.config.covariance.accumulate))
        units = collect_stores(
            run.store, loaded.pipe, loaded.path, loaded.found, run.config.collect.branches, mine, sinks, run.interrupts
        )
        yield from report_units(run, "collect", prepared, (f"prompts of unit {unit}" for unit in units))
    run.store.reload()


def _begin_collect(run: Run, loaded: Collection, weights: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Make room for what is to be collected, or check that it goes on as it was begun."""
    from nullbooth_cli.collect.sinks import features_nbytes
    from nullbooth_cli.nullspace import moments
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.settings import images
    from nullbooth_cli.store.verify import forget_damaged

    if loaded.path.images is not None:
        images.require_readable([images.file_of(loaded.path.images, prompt) for prompt in run.prompts])
    store, section, notes = run.store, run.config.collect, []
    store.reload()
    require_same_noise(run.config, store, loaded.pipe.scheduler)
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
        needed = features_nbytes(loaded.sites, num_steps, len(run.prompts), layout.dtype) if layout.features else 0
        needed += 2 * sums * run.workers.size if layout.moments else 0
        space.ensure_room(store, needed - bytes_of(store, "collect"))
        store.write_record("collect", None)
        create_collection(store, sites=loaded.sites, num_steps=num_steps, num_rows=len(run.prompts), layout=layout)
        store.write_rows(0, run.prompts)
        tensors = {p.weight: tensor_digest(p.module.weight, run.config.dtype) for p in loaded.found.owners}
        start_stage(run, "collect", {"weights": weights}, layout=vars(layout), tensors=tensors, model=model_names(run.config))
        return units_to_do(run, "collect", bool, notes)
    layout = store.layout
    require_same_model(run.config, store, weights, loaded.sites)
    notes += _rename(run)
    if layout.batch_size != batch_size:
        notes.append(f"batch_size stays {layout.batch_size} in this store: the size of its units (now {batch_size} is asked for)")
    for part in store.moments.parts() if layout.moments else ():
        # A kill may have come between a part and the cells of its units.
        cells = store.progress.cells("collect")
        store.progress.mark("collect", [unit for unit in part.units if not cells[unit]], 1)
    if run.repair:
        notes.append(forget_damaged(store, "collect"))
    added = added_prompts(run.prompts, store)
    if layout.features:
        missing = int((store.progress.cells("collect") == 0).sum()) * layout.batch_size + len(added)
        space.ensure_room(store, features_nbytes(loaded.sites, num_steps, missing, layout.dtype))
    if added:
        cells = store.progress.cells("collect")
        # A kill may have left room behind the last unit that holds anything.
        start = max((unit + 1 for unit in range(len(cells)) if cells[unit] or store.members(unit)), default=0) * layout.batch_size
        extend_collection(store, start + len(added))
        store.write_rows(start, added)
        notes.append(f"{len(added)} prompts are new: they are added to the {start} rows that are there")
    cells = store.progress.cells("collect")
    store.progress.mark("collect", [unit for unit in range(len(cells)) if not cells[unit] and not store.members(unit)], 1)
    return units_to_do(run, "collect", bool, notes)


def require_same_noise(config: Config, store: Store, scheduler: Any) -> None:
    """Raise StageError unless the stored schedule follows from the model's scheduler, as `path_of` builds it."""
    from nullbooth_cli.model.scheduler import noise_digest

    recorded = store.records["schedule"]["noise"]
    found = noise_digest(config.schedule.sampler_strategy, scheduler)
    if recorded != found:
        raise StageError(
            f"the scheduler of the model {config.model} is not the one that {store.url} has its schedule from"
            f"\n  noise {recorded} -> {found}",
            "nullbooth schedule --force, or name another store with -s",
        )


def require_same_model(config: Config, store: Store, weights: str, sites: tuple[Site, ...]) -> None:
    """Raise StageError unless a collection was begun with this model: its weights, its layers and their sharing."""
    recorded = store.records["collect"]["weights"]
    if recorded != weights or sites != store.sites:
        changed = f"weights {recorded} -> {weights}" if recorded != weights else "the layers and their sharing"
        raise StageError(
            f"the model {config.model} is not the one this collection was begun with\n  {changed}",
            "nullbooth collect --force, or name another store with -s",
        )


def recognise_model(run: Run) -> list[str]:
    """Where the config has another name for the model of a finished collection, see that it is the same one, and note the name.

    Raises StageError if it is another model. Cost: none under the known name; else loads the model and reads its weights, once.
    """
    from nullbooth_cli.model import load

    if not model_renamed(run.config, run.store):
        return []
    config = run.config.model_copy(update={"model_cpu_offload": False})
    pipe, path = load_path(config, run.store.schedule(), "cpu")
    require_same_noise(config, run.store, pipe.scheduler)
    require_same_model(config, run.store, load.weights_digest(pipe, encodes=path.images is not None), run.store.sites)
    return _rename(run)


def _rename(run: Run) -> list[str]:
    differences = model_renamed(run.config, run.store)
    if differences:
        names = model_names(run.config)
        run.store.write_record("collect", {**run.store.records["collect"], "model": names})
        # With the name, what it takes to load it: the store is then enough by itself.
        loading = {key: getattr(run.config, key) for key in ("pipeline_config", "allow_pickle")}
        run.store.write_config({**run.store.config, **names, **loading})
    return [f"the same model by its weights: {difference}" for difference in differences]


def _take_out(run: Run) -> str | None:
    """Take the prompts that are not wanted any more out of the collection; None where only collecting again is exact."""
    store = run.store
    removed = set(removed_prompts(run.prompts, store))
    if not store.layout.features or (store.progress.cells("collect") == RELEASED).any():
        return None
    if store.layout.moments:
        record = store.records["collect"]
        settings = {name: value for name, value in record["settings"].items() if name != "covariance.accumulate"}
        store.write_record("collect", {**record, "settings": settings, "layout": {**record["layout"], "keep": "features"}})
        store.delete("parts")
    # Last: once they are gone nothing tells a later run that the parts still hold them.
    store.write_rows(0, [None if prompt in removed else prompt for prompt in store.rows])
    return f"{len(removed)} prompts are taken out; their moments are recomputed from the features that stay (covariance --force)"


def release_features(store: Store) -> str:
    """Remove the features whose moments are complete. Returns what was done."""
    if not store.layout.features:
        return "nothing to release: no features are kept here (collect.keep: moments)"
    before = bytes_of(store, "collect")
    release_units(store, [unit for unit, cell in enumerate(store.progress.cells("collect")) if cell])
    freed = (before - bytes_of(store, "collect")) / 1e6
    return f"released {freed:,.1f} MB of features; nullbooth collect --force collects them again"
