"""The denoising path: the model's own pipeline, called as its users call it, held to the stored schedule.

Where a path has images, the pipeline sees them, noised to each step, in the place of what it made itself (`noising`).

Every prompt has its own CPU generator, seeded by the base seed plus its row in the store: starting noise and the noise of
stochastic samplers depend neither on the batch nor on the process that runs it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import Prompt, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.hooks import StopDenoising
from nullbooth_cli.model.load import denoiser_of, tokenizers_of
from nullbooth_cli.model.noised_images import noised
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.model.scheduler import install
from nullbooth_cli.settings.images import file_of
from nullbooth_cli.tensors import generators


@dataclass(frozen=True)
class DenoisingPath:
    """How a batch of prompts is denoised: everything but the prompts.

    `num_inference_steps` is what the pipeline is asked for; some schedulers (PNDM) walk one step more than that. `images` are the
    files of the prompts' images by their digests, None for the model's own path.
    """

    num_inference_steps: int
    steps: tuple[Step, ...]
    guidance_scale: float
    height: int | None
    width: int | None
    seed: int
    images: Mapping[str, Path] | None = None


def use_schedule(pipe: Any, scheduler: Any, steps: tuple[Step, ...]) -> None:
    """Give the pipeline a scheduler that walks exactly the stored steps."""
    pipe.scheduler = install(scheduler, steps)


def denoise(pipe: Any, path: DenoisingPath, members: Sequence[tuple[int, Prompt]], output_type: str = "latent") -> Any:
    """Denoise prompts, each with its row in the store; returns latents, without running the VAE, or with "np" images
    `[B, h, w, 3]` in [0, 1]. Raises ConfigError for what the pipeline refuses, such as a height that is no multiple of 8."""
    seeds = [path.seed + row for row, _ in members]
    size = {name: value for name, value in (("height", path.height), ("width", path.width)) if value is not None}
    seen: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if path.images is not None:
        seen = noised(pipe, path.steps, [file_of(path.images, prompt) for _, prompt in members], seeds)
    try:
        with quiet_libraries(), seen:
            result = pipe(
                prompt=[prompt.text for _, prompt in members],
                num_inference_steps=path.num_inference_steps,
                guidance_scale=path.guidance_scale,
                generator=generators(seeds),
                output_type=output_type,
                **size,
            )
    except ValueError as error:
        raise ConfigError(
            f"{type(pipe).__name__} refuses this: {error}", "check collect.height, collect.width and the model itself"
        ) from error
    finally:
        # A path that a hook ends early leaves the denoiser of an offloaded pipeline on the device.
        pipe.maybe_free_model_hooks()
    return result.images


def begin_denoising(pipe: Any, path: DenoisingPath, prompt: Prompt, num_forwards: int = 0) -> None:
    """Denoise a prompt until so many forwards have ended.

    Without any, the scheduler is left as the pipeline sets it: flow-matching ones are given sigmas and a shift that follows the
    size of the image.
    """
    denoiser, ended = denoiser_of(pipe), 0

    def start(*_: Any) -> None:
        if ended == num_forwards:
            raise StopDenoising

    def end(*_: Any) -> None:
        nonlocal ended
        ended += 1
        start()

    handles = [denoiser.register_forward_pre_hook(start), denoiser.register_forward_hook(end)]
    try:
        denoise(pipe, path, [(0, prompt)])
    except StopDenoising:
        pass
    finally:
        for handle in handles:
            handle.remove()


def truncated_prompts(pipe: Any, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
    """The prompts that are longer than a tokenizer of the pipeline takes, each with the text that is cut off."""
    cut: dict[Prompt, str] = {}
    for tokenizer in tokenizers_of(pipe).values():
        room = tokenizer.model_max_length
        for prompt in prompts:
            ids = tokenizer(prompt.text, truncation=False, verbose=False).input_ids
            if len(ids) > room:
                # The last token of a cut prompt is the end mark, so the words after room - 1 tokens are lost.
                cut[prompt] = tokenizer.decode(ids[room - 1 :], skip_special_tokens=True).strip()
    return list(cut.items())
