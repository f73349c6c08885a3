"""How many prompts fit a forward, and how long a step of them takes."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from accelerate.utils import find_executable_batch_size

from nullbooth_cli.collect.find_sites import FoundSites
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.device import free_memory
from nullbooth_cli.model.hooks import ProjectionHooks, StopDenoising
from nullbooth_cli.model.load import denoiser_of

MARGIN = 0.8  # of the free memory: later steps, sums and waiting writes need some too
MOST = 256
PATIENCE_SECONDS = 5.0
_limit_lock = threading.Lock()


def largest_batch(pipe: Any, path: DenoisingPath, found: FoundSites, prompts: tuple[Prompt, ...], device: torch.device) -> int:
    """The largest number of prompts per forward that fits, at most `MOST` and the number of prompts.

    On CUDA a step is tried and the batch cut down until it fits. Elsewhere nothing says that memory is short before the system
    ends the process, so the memory of one and of two prompts is measured and the rest is computed. Cost: a few forwards.
    """
    most = min(len(prompts), MOST)
    if device.type == "cuda":
        with _limited_memory(device):
            return trial_and_error(pipe, path, found, prompts, most)
    peaks = []
    for batch_size in (1, 2):
        before = psutil.Process().memory_info().rss
        _one_step(pipe, path, found, prompts, batch_size)
        peaks.append(_peak_rss() - before)
    return fitting(peaks[0], peaks[1], int(MARGIN * free_memory(device)), most)


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


def trial_and_error(pipe: Any, path: DenoisingPath, found: FoundSites, prompts: tuple[Prompt, ...], most: int) -> int:
    """The first batch, from `most` downwards, for which the device does not run out of memory."""

    def attempt(batch_size: int) -> int:
        _one_step(pipe, path, found, prompts, batch_size)
        return batch_size

    fits: int = find_executable_batch_size(attempt, starting_batch_size=most)()
    return fits


def _one_step(pipe: Any, path: DenoisingPath, found: FoundSites, prompts: tuple[Prompt, ...], batch_size: int) -> None:
    members = [(row, prompts[row % len(prompts)]) for row in range(batch_size)]
    with ProjectionHooks(denoiser_of(pipe), tuple(found.owners), found.sites[0].side, lambda *_: None, last=0):
        denoise(pipe, path, members)


def time_step(pipe: Any, path: DenoisingPath, found: FoundSites, branches: str, members: Sequence[tuple[int, Prompt]]) -> float:
    """Seconds that one step of a batch takes, from the start of its forward to the start of the next, without writing anything.

    The second step counts, because the first one also warms up; a first one of more than `PATIENCE_SECONDS` is taken as it is.
    Raises ConfigError for what a unit would be refused for: hooks that misfire, values that are not finite.
    """
    recorder, starts = Recorder(path, list(members), found, branches, ()), list[float]()
    denoiser = denoiser_of(pipe)

    def note(*_: Any) -> None:
        if (device := pipe._execution_device).type != "cpu":  # an offloaded pipeline says that it is on the CPU
            torch.accelerator.synchronize(device)
        starts.append(time.monotonic())
        if len(starts) == 3 or (len(starts) == 2 and starts[1] - starts[0] > PATIENCE_SECONDS):
            raise StopDenoising

    with ProjectionHooks(denoiser, tuple(found.owners), found.sites[0].side, recorder.receive):
        handle = denoiser.register_forward_pre_hook(note)
        try:
            denoise(pipe, path, members)
            note()  # a path of one or two steps ends by itself
        finally:
            handle.remove()
    recorder.check()
    return starts[-1] - starts[-2]


def fitting(one: int, two: int, free: int, most: int) -> int:
    """How many prompts fit, if memory grows in proportion: from the bytes that one and two prompts took."""
    each = max(two - one, two // 2, 1)
    return max(1, min(most, free // each))


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
