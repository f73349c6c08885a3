"""The number of prompts that fit a forward, and the time that a step of them takes."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import psutil
import torch
from accelerate.utils import find_executable_batch_size

from nullbooth_cli.collect.find_sites import RecordableModel
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model.denoise import denoise
from nullbooth_cli.model.denoisers import denoiser_of, denoisers_of
from nullbooth_cli.model.device import free_memory
from nullbooth_cli.model.hooks import Forward, ProjectionHooks, StopDenoising

MARGIN = 0.8  # of the free memory: later steps, sums and waiting writes need some too
MOST = 256
PATIENCE_SECONDS = 30.0
TIMED_STEPS, TIMED_SECONDS = 5, 1.0  # whichever is reached first
_limit_lock = threading.Lock()


def largest_batch(model: RecordableModel, prompts: tuple[Prompt, ...], device: torch.device) -> int:
    """The largest number of prompts per forward that fits, at most `MOST` and the number of prompts; 1 if prompts run alone.

    On CUDA a step is tried, and the batch made smaller until it fits. On other devices the system may end the process before it
    reports a shortage, so the memory of one and of two prompts is measured and the rest is computed. Cost: a few forwards.
    """
    if model.found.alone:
        return 1
    most = min(len(prompts), MOST)
    if device.type == "cuda":
        with _limited_memory(device):
            return largest_that_runs(model, prompts, most)
    peaks = []
    for batch_size in (1, 2):
        before = psutil.Process().memory_info().rss
        _run_one_step(model, prompts, batch_size)
        peaks.append(_peak_rss() - before)
    return largest_that_fits(peaks[0], peaks[1], free=int(MARGIN * free_memory(device)), most=most)


@contextmanager
def _limited_memory(device: torch.device) -> Iterator[None]:
    """Let the process allocate `MARGIN` of the device's free memory meanwhile, or less if the program has set less.

    The limit is the process's, so searches for a batch size wait for each other.
    """
    # torch 2.6 has no way to ask for it; its default is 1.
    fraction_of = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    with _limit_lock:
        total = torch.cuda.get_device_properties(device).total_memory
        before: float = fraction_of(device)
        torch.cuda.set_per_process_memory_fraction(min(before, MARGIN * free_memory(device) / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(before, device)


def largest_that_runs(model: RecordableModel, prompts: tuple[Prompt, ...], most: int) -> int:
    """The first batch, from `most` downwards, for which the device does not run out of memory."""

    def attempt(batch_size: int) -> int:
        _run_one_step(model, prompts, batch_size)
        return batch_size

    fits: int = find_executable_batch_size(attempt, starting_batch_size=most)()
    return fits


def largest_that_fits(one: int, two: int, *, free: int, most: int) -> int:
    """The number of prompts that fit into `free` bytes, 1 to `most`, from the bytes of one and of two prompts."""
    each = max(two - one, two // 2, 1)
    return max(1, min(most, free // each))


def time_step(model: RecordableModel, members: Sequence[tuple[int, Prompt]]) -> float:
    """Seconds that one step of a batch takes, from the start of its forward to the start of the next; nothing is written.

    The first step also pays for threads and caches, so it is only a warm-up: the result is the median of the next `TIMED_STEPS`
    steps, or of those in `TIMED_SECONDS`. If the first step alone takes more than `PATIENCE_SECONDS`, the result is its time.
    Raises the errors that a unit would raise: ModelError for hooks that misfire, DataError for values that are not finite.
    """
    recorder, starts = Recorder(model, members, sinks=()), list[float]()
    denoiser = denoiser_of(model.pipe)

    def note_start(*_: object) -> None:
        if (device := model.pipe._execution_device).type != "cpu":  # `device` of an offloaded pipeline is the CPU
            torch.accelerator.synchronize(device)
        starts.append(time.monotonic())
        if len(starts) == 2 and starts[1] - starts[0] > PATIENCE_SECONDS:
            raise StopDenoising
        if len(starts) > 2 and (len(starts) == TIMED_STEPS + 2 or starts[-1] - starts[1] >= TIMED_SECONDS):
            raise StopDenoising

    denoisers, projections = denoisers_of(model.pipe), model.found.projections
    with ProjectionHooks(
        denoisers, projections, model.found.side, recorder.receive, begin=recorder.begin, enter=recorder.enter
    ) as hooks:
        handle = denoiser.register_forward_pre_hook(note_start)
        try:
            denoise(model.pipe, model.path, members, after_step=hooks.end_step)
            note_start()  # a short path ends by itself
        finally:
            handle.remove()
    recorder.check()
    first, *warm = (end - start for start, end in pairwise(starts))
    return median(warm) if warm else first


def _run_one_step(model: RecordableModel, prompts: tuple[Prompt, ...], batch_size: int) -> None:
    members = [(row, prompts[row % len(prompts)]) for row in range(batch_size)]
    denoisers, last = denoisers_of(model.pipe), Forward("", 0, model.found.branches[-1].turn)
    with ProjectionHooks(denoisers, model.found.projections, model.found.side, lambda *_: None, last=last):
        denoise(model.pipe, model.path, members)


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
