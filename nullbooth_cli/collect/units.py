"""The loop of stage collect: runs the model over units of prompts, and records the inputs (or outputs) of its projections.

`collect_units()` runs units, one batch of prompts over the whole schedule each. Every tensor goes to the sinks: `FeatureSink`
stores its vectors, `MomentSink` adds them up. A unit counts as done once all of it is durable.

The last forward ends at the last recorded projection. Tensors that are an argument of the denoiser need no forward at all.

Cost of features: bytes per prompt = sum over sites of T * L * D * itemsize, with T = 1 for timestep-free sites.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nullbooth_cli.collect.find_sites import RecordableModel
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.collect.sinks import Sink
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import denoise
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks, StopDenoising
from nullbooth_cli.model.padding import TEXT_ARGUMENT
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import keep_freed_memory


def collect_units(
    store: Store,
    model: RecordableModel,
    units: Iterable[int],
    *,
    sinks: Sequence[Sink],
    interrupts: Interrupts,
) -> Iterator[int]:
    """Run the given units and yield each once it is durable.

    Raises ModelError for a hook that misfires, and for a tensor that is shared or timestep-free in the first two steps only.
    Raises DataError for a value that is not finite, naming prompt, layer and timestep. Raises KeyboardInterrupt when an interrupt
    was requested, after the finished units are durable.
    """
    keep_freed_memory()
    finished: list[int] = []
    for unit in units:
        taking = [sink for sink in sinks if sink.lacks(unit)]
        recorder = Recorder(model, store.members(unit), sinks=taking)
        run_unit(model, recorder)
        recorder.check()
        finished.append(unit)
        if interrupts.requested or all(sink.due() for sink in sinks):
            yield from _make_durable(store, finished, sinks)
            finished = []
        interrupts.unwritten = bool(finished)
        if interrupts.requested:
            raise KeyboardInterrupt
    yield from _make_durable(store, finished, sinks)
    interrupts.unwritten = False
    if interrupts.requested:
        raise KeyboardInterrupt


def _make_durable(store: Store, units: list[int], sinks: Sequence[Sink]) -> list[int]:
    """Write everything that the sinks took, and only then mark the units as done."""
    if units:
        for sink in sinks:
            sink.checkpoint(units)
        store.progress.commit("collect", units)
    return units


def run_unit(model: RecordableModel, recorder: Recorder) -> None:
    """Run as much of the denoising path as the sites need. Raises ModelError for a pipeline that skips steps."""
    last = model.found.last_forward(len(model.path.steps))
    if not (_run_forwards(model, recorder, last) if last else _take_arguments(model, recorder)):
        raise ModelError(
            f"the pipeline ran {recorder.num_forwards} forwards for {len(model.path.steps)} steps",
            "choose another pipeline, or switch off its caching: skipped steps cannot be recorded",
        )


def _run_forwards(model: RecordableModel, recorder: Recorder, last: Forward) -> bool:
    """Denoise until all projections have fired in the last needed forward. Returns whether they have."""
    with ProjectionHooks(
        denoisers_of(model.pipe),
        model.found.projections,
        model.found.side,
        recorder.receive,
        last=last,
        begin=recorder.begin,
        enter=recorder.enter,
    ) as hooks:
        denoise(model.pipe, model.path, recorder.members, after_step=hooks.end_step)
    return hooks.ended


def _take_arguments(model: RecordableModel, recorder: Recorder) -> bool:
    """Record the text that the denoiser is called with, and stop before its first forward. Returns whether it was called."""
    first_of = {site: projection for projection, site in reversed(list(model.found.site_of.items()))}

    def take(forward: Forward, arguments: Mapping[str, Any]) -> None:
        recorder.begin(forward, arguments)
        for site in model.sites:
            recorder.receive(first_of[site], forward, arguments[TEXT_ARGUMENT])
        raise StopDenoising

    with ProjectionHooks(denoisers_of(model.pipe), (), model.found.side, lambda *_: None, begin=take) as hooks:
        denoise(model.pipe, model.path, recorder.members)
    return hooks.ended
