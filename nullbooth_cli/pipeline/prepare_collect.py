"""Prepares the store before the first unit of collect: a new collection, or one that is resumed.

prepare_collect(run, loaded, weights, batch_size)     one of:
├── _start_afresh     nothing is there, or force replaces it
└── _resume           the same model, and then
    ├── repair        damaged units are marked as not done
    └── _add_prompts  rows for the prompts that are new
"""

from typing import TYPE_CHECKING

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.pipeline.differences import added_prompts, removed_prompts
from nullbooth_cli.pipeline.run import Prepared, Run, layout_of, start_stage, units_to_do
from nullbooth_cli.pipeline.same_model import note_names, require_same_model, require_same_noise
from nullbooth_cli.pipeline.state import bytes_of
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import RELEASED, Store, create_collection, extend_collection, listed_tasks

NOTED_BYTES = 100 << 20  # room that no prompt fills: more of it is reported

if TYPE_CHECKING:
    from nullbooth_cli.collect.find_sites import RecordableModel


def prepare_collect(run: Run, loaded: "RecordableModel", weights: str, batch_size: int) -> Prepared:
    """Make room for a new collection, or check that a collection is resumed as it was started.

    `weights` is the digest of the model's weights; `batch_size` is the number of prompts per forward, which is also the unit that
    is resumed and the border between chunks. Raises StageError for another model than the collection's, ResourceError if the disk
    is too small.
    """
    require_same_noise(run.config, run.store, loaded.pipe)
    found, notes = run.states().own["collect"], list[str]()
    afresh = found.state == "missing" or run.force
    if run.force and found.only_lost_prompts:
        note = _take_out_prompts(run)
        afresh = note is None
        notes.append(note or "sums cannot give back single prompts exactly, and their features are not there: collecting again")
    if not afresh and not run.workers.shard and found.units_done == 0 and run.store.layout.batch_size != batch_size:
        afresh = True  # the size of a unit is the size of a chunk: it may change as long as nothing has been collected
    if afresh:
        notes += _start_afresh(run, loaded, weights, batch_size)
    else:
        notes += _resume(run, loaded, weights, batch_size)
    return units_to_do(run, "collect", bool, notes)


def _start_afresh(run: Run, loaded: "RecordableModel", weights: str, batch_size: int) -> list[str]:
    """Empty the collection, and make room for every prompt. Returns notes for the user."""
    from nullbooth_cli.collect.sinks import features_nbytes
    from nullbooth_cli.nullspace.moments import sums_nbytes
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.tensors import tensor_digest, tensor_sample

    store, num_steps = run.store, run.store.num_steps
    names = [entry.name for entry in listed_tasks(store)]
    if names and store.records.get("collect", {}).get("weights", weights) != weights:
        raise ConfigError(
            f"{store.url} remembers {', '.join(names)}, taught to another model than {run.config.model} is now",
            "forget the tasks first, or set store to another place",
        )
    layout = layout_of(run.config.collect, batch_size)
    rows = layout.num_units(len(run.prompts)) * batch_size  # chunks are whole: those of the last unit have room for a whole batch
    features = features_nbytes(loaded.sites, num_steps, rows, layout.dtype) if layout.keeps_features else 0
    sums = sums_nbytes(loaded.sites, num_steps, run.config.covariance.factoring()) if layout.keeps_moments else 0
    needed = features + 2 * sums * run.workers.size
    space.ensure_room(store, needed - bytes_of(store, "collect"))
    store.write_record("collect", None)
    create_collection(store, sites=loaded.sites, num_steps=num_steps, num_rows=len(run.prompts), layout=layout)
    store.write_rows(0, run.prompts)
    tensors = {p.weight: tensor_digest(p.module.weight, run.config.dtype) for p in loaded.found.projections}
    samples = {p.weight: tensor_sample(p.module.weight) for p in loaded.found.projections}
    known = {"tensors": tensors, "samples": samples, "model": model_names(run.config)}
    start_stage(run, "collect", {"weights": weights}, layout=vars(layout), **known)
    empty = features - features * len(run.prompts) // rows
    if empty < NOTED_BYTES:
        return []
    return [
        f"batch_size is {batch_size} for {counted(len(run.prompts), 'prompt')}: chunks have room for whole batches, "
        f"so {empty / 1e6:,.1f} of up to {features / 1e6:,.1f} MB stay empty"
    ]


def _resume(run: Run, loaded: "RecordableModel", weights: str, batch_size: int) -> list[str]:
    """Check the model, and bring cells and rows up to date. Returns notes for the user."""
    from nullbooth_cli.collect.sinks import features_nbytes
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.store.verify import forget_damaged

    store, layout = run.store, run.store.layout
    require_same_model(run.config, store, weights, loaded.sites)
    notes = note_names(run)
    if layout.batch_size != batch_size:
        notes.append(f"batch_size stays {layout.batch_size} in this store: the size of its units (now {batch_size} is asked for)")
    if not layout.keeps_features:  # else a unit that is in the sums may be one whose features are damaged
        _mark_folded(store)
    if run.repair:
        notes.append(forget_damaged(store, "collect"))
    added = added_prompts(run.prompts, store)
    if layout.keeps_features:
        units = int((store.progress.cells("collect") == 0).sum()) + layout.num_units(len(added))
        missing = units * layout.batch_size
        space.ensure_room(store, features_nbytes(loaded.sites, store.num_steps, missing, layout.dtype))
    if added:
        notes.append(_add_prompts(store, added))
    empty = [unit for unit, cell in enumerate(store.progress.cells("collect")) if not cell and not store.members(unit)]
    store.progress.mark("collect", empty, 1)
    return notes


def _mark_folded(store: Store) -> None:
    """Mark the units of all partial sums as done: a kill may have come between a checkpoint and the cells."""
    cells = store.progress.cells("collect")
    for part in store.moments.all_partial_sums():
        store.progress.mark("collect", [unit for unit in part.units if not cells[unit]], 1)


def _add_prompts(store: Store, added: list[Prompt]) -> str:
    """Put new prompts into units of their own, after the last unit in use. Returns a note for the user."""
    # A kill may have left room after that unit.
    cells = store.progress.cells("collect")
    units = max((unit + 1 for unit in range(len(cells)) if cells[unit] or store.members(unit)), default=0)
    start = units * store.layout.batch_size
    extend_collection(store, start + len(added))
    store.write_rows(start, added)
    return f"{len(added)} prompts are new: they are added to the {start} rows that are there"


def _take_out_prompts(run: Run) -> str | None:
    """Take the prompts that the config no longer names out of the collection; None where only collecting again is exact."""
    store = run.store
    removed = set(removed_prompts(run.prompts, store))
    if not store.layout.keeps_features or (store.progress.cells("collect") == RELEASED).any():
        return None
    if store.layout.keeps_moments:
        record = store.records["collect"]
        settings = {name: value for name, value in record["settings"].items() if name != "covariance.accumulate"}
        store.write_record("collect", {**record, "settings": settings, "layout": {**record["layout"], "keep": "features"}})
    store.delete("parts")  # also those that a kill left behind
    # Last: without these rows a later run cannot know that the partial sums still include them.
    store.write_rows(0, [None if prompt in removed else prompt for prompt in store.rows])
    return f"{len(removed)} prompts are taken out; force covariance to compute the moments again from the features that stay"
