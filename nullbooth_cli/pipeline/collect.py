"""Stage collect under a config: it loads the model, prepares the store, and records every unit that is left.

`collect.batch_size` is the number of prompts per forward, the size of a unit (the piece that is resumed), and the border between
chunks, so that two processes never write into one chunk. It is fixed once a unit is collected.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from nullbooth_cli.collect.open_model import load_recordable
from nullbooth_cli.pipeline.prepare_collect import prepare_collect
from nullbooth_cli.pipeline.run import Run, decide, my_units, prepare, report_units
from nullbooth_cli.pipeline.state import bytes_of
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import CollectSection
from nullbooth_cli.settings.weighting import weighting_note
from nullbooth_cli.store import Store, release_units

if TYPE_CHECKING:
    import torch

    from nullbooth_cli.collect.find_sites import RecordableModel
    from nullbooth_cli.collect.sinks import MomentSink, Sink


def run_collect(run: Run) -> Iterator[Event]:
    """Run the model over the prompts that are left, and write features, sums, or both.

    Raises ConfigError for images that cannot be read, every error of `prepare_collect`, and ModelError or DataError for tensors
    that cannot be recorded. Cost: loads the model, finds the sites by a few steps, then one denoising path for every batch.
    """
    from nullbooth_cli.collect.batch_size import largest_batch
    from nullbooth_cli.collect.edited_model import load_edited
    from nullbooth_cli.collect.sinks import FeatureSink
    from nullbooth_cli.collect.units import collect_units
    from nullbooth_cli.model import load
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.model.prompt_length import cut_off_note
    from nullbooth_cli.store.background import Writer

    store, section = run.store, run.config.collect
    device = pick_device(run.device or run.workers.device)
    decide(run, lambda: _require_readable_images(run))
    yield Note(f"loading the model {run.edited or run.config.model}, to {device}")
    pipe = None if run.edited is None else load_edited(run.config, run.edited, str(device))
    loaded = load_recordable(run.config, store.schedule(), run.prompts, str(device), pipe=pipe)
    weights = load.weights_digest(loaded.pipe, encodes=loaded.path.images is not None)
    batch_size = section.batch_size
    if run.auto_batch:
        batch_size = largest_batch(loaded, run.prompts, device)
    elif loaded.found.alone and batch_size > 1:
        batch_size = 1
        yield Note(
            f"prompts run one at a time, not {section.batch_size}: a batch of {run.config.model} fails or changes their values"
        )
    prepared = prepare(run, lambda: prepare_collect(run, loaded, weights, batch_size))
    loaded = replace(loaded, found=loaded.found.with_sites(store.sites))
    if cut := cut_off_note(loaded.pipe, [prompt.text for prompt in run.prompts]):
        prepared.notes.append(cut)
    if weights_in_prompts := weighting_note(prompt.text for prompt in run.prompts):
        prepared.notes.append(weights_in_prompts)
    prepared.notes.extend(_own_guidance(section, type(loaded.pipe)))
    yield from map(Note, prepared.notes)
    with Writer() as writing:
        sinks: list[Sink] = [FeatureSink(store, writing)] if store.layout.keeps_features else []
        if store.layout.keeps_moments and prepared.todo:
            sink, place = _moment_sink(run, loaded, device)
            sinks.append(sink)
            if place != device:
                yield Note(f"the sums do not fit {device} beside the model: they stay in host memory")
        mine = my_units(run, prepared)
        units = collect_units(store, loaded, mine, sinks=sinks, interrupts=run.interrupts)
        yield from report_units(run, "collect", prepared, (f"prompts of unit {unit}" for unit in units))
    store.reload()


def _own_guidance(section: CollectSection, pipeline: type) -> list[str]:
    """A note if nobody chose the guidance, and the pipeline itself draws with another."""
    from nullbooth_cli.model.pipeline_call import call_of

    own = call_of(pipeline).own_guidance
    if own is None or "guidance_scale" in section.model_fields_set or own == section.guidance_scale:
        return []
    return [f"collect.guidance_scale is not set: it is {section.guidance_scale:g}, and a {pipeline.__name__} draws with {own:g}"]


def _require_readable_images(run: Run) -> None:
    from nullbooth_cli.settings import images

    if (folder := run.config.collect.images) is not None:
        files = images.image_files(folder)
        images.require_readable([images.file_of(files, prompt) for prompt in run.prompts])


def _moment_sink(run: Run, loaded: "RecordableModel", device: "torch.device") -> "tuple[MomentSink, torch.device]":
    """(the sink that folds this process's moments, the device that its sums are on)."""
    from nullbooth_cli.collect.sinks import MomentSink
    from nullbooth_cli.pipeline import space

    num_steps = run.store.num_steps
    section = run.config.covariance
    place = space.place_for_sums(loaded.sites, num_steps, device, section.factoring())
    part = run.store.moments.partial_sums(run.workers.name)
    if not part.units:
        part.create(loaded.sites, num_steps, section.factoring())
    folded = [unit for other in run.store.moments.all_partial_sums() if other.name != part.name for unit in other.units]
    sink = MomentSink(
        part,
        loaded.sites,
        num_steps,
        device=place,
        accumulate=section.accumulate,
        factoring=section.factoring(),
        folded=folded,
    )
    return sink, place


def release_features(store: Store) -> str:
    """Remove the features whose moments are complete. Returns a sentence for the user."""
    if not store.layout.keeps_features:
        return "nothing to release: no features are stored here (collect.keep: moments)"
    before = bytes_of(store, "collect")
    release_units(store, [unit for unit, cell in enumerate(store.progress.cells("collect")) if cell])
    freed = (before - bytes_of(store, "collect")) / 1e6
    return f"released {freed:,.1f} MB of features; force collects them again"
