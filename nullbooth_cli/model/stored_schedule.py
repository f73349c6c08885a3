"""A pipeline that walks exactly the stored steps, and is watched while it does.

Methods of a scheduler are replaced in a class of its own, not on the instance: pipelines copy their scheduler (LTX-2 has one more
for sound), and a copied attribute would still step the original.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DDPMWuerstchenScheduler, SCMScheduler

from nullbooth_cli.datatypes import Step
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.pipeline_classes import OTHER
from nullbooth_cli.model.protocols import Pipeline, Scheduler
from nullbooth_cli.settings.pipeline_inputs import KEY

WITH_END = (DDPMWuerstchenScheduler, SCMScheduler)  # the last of their timesteps is where the path ends, and is not walked
SCHEDULER_PARTS = ("scheduler", "decoder_scheduler")  # that of the main denoiser: the first of these that a pipeline has


def scheduler_in(pipe: Pipeline) -> Scheduler:
    """The scheduler that steps the main denoiser: in a pipeline of several stages that of the decoder."""
    found: Scheduler = getattr(pipe, next(name for name in SCHEDULER_PARTS if hasattr(pipe, name)))
    return found


def put_scheduler(pipe: Pipeline, scheduler: Scheduler) -> None:
    """Replace the scheduler that steps the main denoiser, in a combined pipeline that of the pipeline inside as well."""
    name = next(name for name in SCHEDULER_PARTS if hasattr(pipe, name))
    setattr(pipe, name, scheduler)
    if (inner := getattr(pipe, "decoder_pipe", None)) is not None:
        inner.scheduler = scheduler


def num_walked(scheduler: Scheduler) -> int:
    """How many of its timesteps a scheduler walks."""
    return len(scheduler.timesteps) - isinstance(scheduler, WITH_END)


def install(scheduler: Scheduler, steps: tuple[Step, ...]) -> Scheduler:
    """Make `set_timesteps` end in exactly these steps, so that a pipeline walks the stored schedule. Returns the scheduler.

    The solver then runs on the stored sigmas themselves: custom *timesteps* would lose Karras spacing and give NaN on repeats.
    `set_timesteps` raises ModelError if the scheduler walks another number of steps.
    """
    kind = type(scheduler)

    @functools.wraps(kind.set_timesteps)  # pipelines look at its arguments
    def set_timesteps(self: Scheduler, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        if num_walked(self) != len(steps):
            raise ModelError(
                f"the scheduler walks {num_walked(self)} steps, the stored schedule has {len(steps)}",
                "choose another schedule.sampler_strategy: this one does not follow a stored schedule",
            )
        write_steps(self, steps)

    _replace(scheduler, set_timesteps=set_timesteps)
    return scheduler


def write_steps(scheduler: Scheduler, steps: tuple[Step, ...]) -> None:
    """Replace the scheduler's timesteps and sigmas by the stored ones; what follows the last step stays the scheduler's own."""
    stored = torch.tensor([s.timestep for s in steps], dtype=torch.float64).to(scheduler.timesteps)
    end = scheduler.timesteps[len(steps) :] if isinstance(scheduler, WITH_END) else scheduler.timesteps[:0]
    scheduler.timesteps = torch.cat([stored, end])
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > len(steps):
        sigmas = torch.tensor([s.sigma for s in steps], dtype=torch.float64).to(scheduler.sigmas)
        scheduler.sigmas = torch.cat([sigmas, scheduler.sigmas[len(steps) :]])


@contextlib.contextmanager
def watched(pipe: Pipeline, steps: tuple[Step, ...], after_step: Callable[[], None]) -> Iterator[None]:
    """Call `after_step` whenever the scheduler of the main denoiser has made a step; copies of it are not counted.

    With stored `steps`, raises ConfigError if the first step is a later one of them, and ModelError for another number of steps
    once the path has ended by itself.
    """
    scheduler, num_made = scheduler_in(pipe), 0
    kind = type(scheduler)

    @functools.wraps(kind.step)
    def step(self: Scheduler, *args: Any, **kwargs: Any) -> Any:
        nonlocal num_made
        if self is not scheduler:
            return kind.step(self, *args, **kwargs)
        if num_made == 0:
            _require_the_first(pipe, steps, kwargs.get("timestep", args[1] if len(args) > 1 else None))
        made = kind.step(self, *args, **kwargs)
        num_made += 1
        after_step()
        return made

    _replace(scheduler, step=step)
    try:
        yield
    finally:
        scheduler.__class__ = kind
    if num_made == 0:
        raise ModelError(f"{type(pipe).__name__} never steps its scheduler, so that its steps cannot be told apart", OTHER)
    if steps and num_made != len(steps):
        raise ModelError(
            f"{type(pipe).__name__} walks {num_made} steps, the stored schedule has {len(steps)}",
            f"take out of {KEY} what changes its path, or choose another pipeline",
        )


def _require_the_first(pipe: Pipeline, steps: tuple[Step, ...], timestep: Any) -> None:
    if not steps or not isinstance(timestep, int | float | torch.Tensor) or torch.as_tensor(timestep).numel() != 1:
        return
    given = float(timestep)
    nearest = min(steps, key=lambda step: abs(step.timestep - given))
    if nearest.timestep < steps[0].timestep and abs(nearest.timestep - given) < 1e-3 * abs(nearest.timestep):
        raise ConfigError(
            f"{type(pipe).__name__} starts at timestep {given:g}, step {nearest.index} of the stored schedule",
            f"set what shortens its path, such as strength, to 1.0 in {KEY}",
        )


def _replace(scheduler: Scheduler, **methods: Callable[..., Any]) -> None:
    """Give a scheduler, and every copy of it, other methods: its class becomes one of the same name below its own."""
    kind = type(scheduler)
    same = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    if not hasattr(kind, "scale_model_input"):  # Bria spares exactly diffusers' own class this call
        methods["scale_model_input"] = lambda _, sample, *__: sample
    scheduler.__class__ = type(kind.__name__, (kind,), {**same, **methods})
