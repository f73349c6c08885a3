"""The denoising path: the model's own pipeline, called as its users call it, along the stored schedule.

On a path with images, the pipeline sees them in place of its own latents, noised to each step (`noised_images`).

Every prompt has its own CPU generator, seeded by the base seed plus its row in the store. Starting noise and the noise of
stochastic samplers therefore depend neither on the batch nor on the process.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.datatypes import Prompt, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import StopDenoising
from nullbooth_cli.model.noised_images import noised
from nullbooth_cli.model.pipeline_call import call_of
from nullbooth_cli.model.protocols import Pipeline, Scheduler
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.model.stored_schedule import install, put_scheduler, watched
from nullbooth_cli.settings.images import file_of
from nullbooth_cli.settings.pipeline_inputs import KEY
from nullbooth_cli.tensors import generators


@dataclass(frozen=True, kw_only=True)
class DenoisingPath:
    """How a batch of prompts is denoised: everything but the prompts.

    `num_inference_steps` is the pipeline's argument; some schedulers (PNDM) walk one step more. `height` and `width` are in
    pixels, None for the model's own size. `images` are the files of the prompts' images by their digests, None for the model's
    own path. `inputs` are fixed inputs of every call, read (`fixed_inputs`).
    """

    num_inference_steps: int
    steps: tuple[Step, ...]
    guidance_scale: float
    height: int | None
    width: int | None
    seed: int
    images: Mapping[str, Path] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)


def use_schedule(pipe: Pipeline, scheduler: Scheduler, steps: tuple[Step, ...]) -> None:
    """Give the pipeline a scheduler that walks exactly the stored steps."""
    put_scheduler(pipe, install(scheduler, steps))


def denoise(
    pipe: Pipeline,
    path: DenoisingPath,
    members: Sequence[tuple[int, Prompt]],
    output_type: str = "latent",
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Any:
    """Denoise prompts, each with its row in the store; `after_step` is called whenever the scheduler has made a step.

    Returns latents, without running the autoencoder where the class can; with "np" images `[B, h, w, 3]` in [0, 1], or frames.
    Raises ConfigError for arguments that are missing, and for those that the pipeline refuses, such as a height that is not a
    multiple of 8; ModelError for a class that cannot be used.
    """
    call = call_of(type(pipe))
    seeds = [path.seed + row for row, _ in members]
    size = {name: value for name, value in (("height", path.height), ("width", path.width)) if value is not None}
    on_images: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if path.images is not None:
        on_images = noised(pipe, path.steps, [file_of(path.images, prompt) for _, prompt in members], seeds)
    arguments = call.arguments(
        [prompt.text for _, prompt in members],
        num_inference_steps=path.num_inference_steps,
        guidance_scale=path.guidance_scale,
        size=size,
        generators=generators(seeds),
        output_type=output_type,
        inputs=path.inputs,
    )
    try:
        with quiet_libraries(), on_images, watched(pipe, path.steps, after_step):
            result = pipe(**arguments)
    except ValueError as error:
        given = ", ".join(["collect.height, collect.width", *([KEY] if path.inputs else [])])
        raise ConfigError(f"{type(pipe).__name__} refuses this: {error}", f"check {given} and the model itself") from error
    except (RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
        if not path.inputs or isinstance(error, torch.OutOfMemoryError):
            raise
        if len(members) > 1:
            raise call.too_many(len(members), f", with these {KEY}: {error}") from error
        name = type(pipe).__name__
        raise ConfigError(f"{name} fails with these {KEY}: {type(error).__name__}: {error}", f"check {KEY}") from error
    finally:
        # If a hook ends the path early, the denoiser of an offloaded pipeline is still on the device.
        pipe.maybe_free_model_hooks()
    return result[0]


def begin_denoising(pipe: Pipeline, path: DenoisingPath, prompt: Prompt, num_forwards: int = 0) -> None:
    """Denoise one prompt until `num_forwards` forwards of the denoiser have ended.

    With 0 forwards it ends before the first one, when the pipeline has set the scheduler's steps: flow-matching pipelines choose
    sigmas and a shift by the size of the image.
    """
    denoiser, num_ended = denoiser_of(pipe), 0

    def before_forward(*_: object) -> None:
        if num_ended == num_forwards:
            raise StopDenoising

    def after_forward(*_: object) -> None:
        nonlocal num_ended
        num_ended += 1
        before_forward()

    handles = [denoiser.register_forward_pre_hook(before_forward), denoiser.register_forward_hook(after_forward)]
    try:
        denoise(pipe, path, [(0, prompt)])
    except StopDenoising:
        pass
    finally:
        for handle in handles:
            handle.remove()
