"""Stage collect: runs the model over the prompts and records what its cross-attention projections receive.

`collect()` runs the missing units, one batch of prompts over the whole schedule each. Every tensor goes to the sinks that are
wanted: `FeatureSink` stores its vectors, `moments.MomentSink` adds them up. A unit counts once all of it is durable.

Nothing is computed that nobody asked for: the last forward ends at the last wanted projection, and tensors that are an argument
of the denoiser need no forward at all.

Cost of features: bytes per prompt = sum over sites of T * L * D * itemsize (T = 1 where the timestep plays no part).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nullbooth_cli.collect.find_sites import TEXT_ARGUMENT, FoundSites
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.collect.sinks import Sink
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.hooks import ProjectionHooks, StopDenoising
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.store import Store


def collect(
    store: Store,
    pipe: Any,
    path: DenoisingPath,
    found: FoundSites,
    branches: str,
    units: Iterable[int],
    sinks: Sequence[Sink],
    interrupts: Interrupts,
) -> Iterator[int]:
    """Run the given units and yield each once it is durable.

    Raises ConfigError for a hook that misfires, a value that is not finite (named: prompt, layer, timestep), a tensor that was
    shared or timestep-free in the first two steps and is not any more.
    """
    finished: list[int] = []
    for unit in units:
        recorder = Recorder(path, store.members(unit), found, branches, sinks)
        _run(pipe, path, recorder, found)
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
    if units:
        for sink in sinks:
            sink.checkpoint(units)
        store.progress.commit("collect", units)
    return units


def forwards_needed(found: FoundSites, num_steps: int) -> int:
    """How many forwards of the denoiser a unit takes: none for what is its argument, one for what no timestep changes."""
    if found.given == set(found.sites):
        return 0
    return 1 if all(site.timestep_free for site in found.sites) else num_steps


def _run(pipe: Any, path: DenoisingPath, recorder: Recorder, found: FoundSites) -> None:
    """Run as much of the denoising path as the recordings need."""
    denoiser, needed = denoiser_of(pipe), forwards_needed(found, len(path.steps))
    if not needed:
        first_of = {site: projection for projection, site in reversed(found.owners.items())}

        def take(_: Any, __: Any, arguments: dict[str, Any]) -> None:
            recorder.begin(arguments)
            for site in found.sites:
                recorder.receive(first_of[site], 0, arguments[TEXT_ARGUMENT])
            raise StopDenoising

        handle = denoiser.register_forward_pre_hook(take, with_kwargs=True)
        try:
            denoise(pipe, path, recorder.members)
        except StopDenoising:
            return
        finally:
            handle.remove()
    else:
        with ProjectionHooks(
            denoiser, tuple(found.owners), found.sites[0].side, recorder.receive, needed - 1, recorder.begin
        ) as watch:
            denoise(pipe, path, recorder.members)
        if watch.ended:
            return
    raise ConfigError(
        f"the pipeline ran {recorder.num_forwards} forwards for {len(path.steps)} steps",
        "this pipeline skips steps; it cannot be recorded",
    )
