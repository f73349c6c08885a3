"""Real images in place of the model's own path: encoded once, and noised to every step of the stored schedule.

The pipeline is called as on its own path, so that it computes embeddings, guidance, sizes and packing itself. While it runs, two
of its parts are replaced (`noised`). Its starting latents are the images, noised to the first step. Its scheduler ignores the
model's prediction and returns the images noised to the next step. So every forward sees real images at its timestep.

- An image's latents are the mean of the autoencoder's distribution: sampling would add noise far below that of any step, and one
  more seed.
- Every step has fresh noise, as in training: one draw a step from the image's own generator, so that it depends neither on the
  batch nor on the process. The first draw is the noise that a path of the same row starts from.
- The scheduler's own `add_noise` or `scale_noise` mixes the two, in float32.

Memory: the latents of a batch once for each step; 16 MB for 30 steps of 8 images of 512 x 512 pixels, in float16.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import AutoencoderKL

from nullbooth_cli.datatypes import Step
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.latents import encode_images, pack_latents
from nullbooth_cli.model.protocols import LatentPipeline, Pipeline, Scheduler
from nullbooth_cli.model.stored_schedule import write_steps
from nullbooth_cli.settings.images import read_image
from nullbooth_cli.tensors import generators

if TYPE_CHECKING:
    from PIL import Image

_OWN_PATH = "set collect.latents to path and collect.images to null"


@contextlib.contextmanager
def noised(pipe: Pipeline, steps: tuple[Step, ...], files: Sequence[Path], seeds: Sequence[int]) -> Iterator[None]:
    """Let a call of the pipeline see these images, one a prompt, noised to each step.

    Raises ModelError for a pipeline without an AutoencoderKL, and for one with a picture of its own; ConfigError for an image of
    another size than the pipeline's.
    """
    if not isinstance(getattr(pipe, "vae", None), AutoencoderKL) or not hasattr(pipe, "prepare_latents"):
        raise ModelError(
            f"{type(pipe).__name__} cannot run on images: nullbooth encodes them by an AutoencoderKL, "
            f"and this pipeline has {type(getattr(pipe, 'vae', None)).__name__}",
            _OWN_PATH,
        )
    taken = inspect.signature(pipe.prepare_latents).parameters.keys()
    if "image" in taken or not {"height", "width"} <= taken:
        raise ModelError(f"{type(pipe).__name__} starts from a picture of its own, and so cannot start from others", _OWN_PATH)
    pipe = cast(LatentPipeline, pipe)
    scheduler, prepare = pipe.scheduler, pipe.prepare_latents
    walk = _NoisedImages(pipe, steps, seeds)

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = prepare(*args, **kwargs)  # Flux returns the places of its patches as well
        asked = inspect.signature(prepare).bind(*args, **kwargs).arguments
        latents, *others = made if isinstance(made, tuple) else (made,)
        start = walk.begin(files, (asked["width"], asked["height"]), latents)
        return (start, *others) if others else start

    pipe.scheduler, pipe.prepare_latents = cast(Scheduler, walk), prepare_latents
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        del pipe.prepare_latents


class _NoisedImages:
    """A scheduler that steps from one noised image to the next. Everything but the latents comes from the wrapped scheduler."""

    def __init__(self, pipe: LatentPipeline, steps: tuple[Step, ...], seeds: Sequence[int]) -> None:
        self._pipe, self._scheduler, self._steps, self._seeds = pipe, pipe.scheduler, steps, seeds
        self._before: list[Any] = []  # for each step, the scheduler before that step: classes mix noise in different ways
        self._latents: list[torch.Tensor] = []  # at each step, and the clean images at the end
        self._index = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def begin(self, files: Sequence[Path], size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """Encode the images and noise them to every step. Returns those of the first step, with the shape and dtype of `like`.

        All steps are noised at once: noise is drawn on the CPU, and the device should not wait for it between steps.
        """
        clean = encode_images(self._pipe, [_fitting(file, size) for file in files], like.device)
        own = generators(self._seeds)
        self._before = [self._scheduler_before(index) for index in range(len(self._steps))]
        for index, scheduler in enumerate(self._before):
            noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in own]).to(clean)
            timestep = scheduler.timesteps[index : index + 1]
            mixed = (
                scheduler.scale_noise(clean, timestep, noise)
                if hasattr(scheduler, "scale_noise")
                else scheduler.add_noise(clean, noise, timestep)
            )
            self._latents.append(pack_latents(self._pipe, mixed.to(like.dtype)))
        self._latents.append(pack_latents(self._pipe, clean.to(like.dtype)))
        if self._latents[0].shape != like.shape:
            raise ConfigError(
                f"{type(self._pipe).__name__} takes latents of shape {list(like.shape)}, and images of {size[0]} x {size[1]} "
                f"pixels give {list(self._latents[0].shape)}",
                "set collect.height and collect.width to multiples of 64, which the model can divide",
            )
        return self._latents[0]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Scale as the wrapped scheduler does at this step."""
        scaled: torch.Tensor = self._before[self._index].scale_model_input(sample, timestep)
        return scaled

    def step(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(the images at the next step, the clean images); after the last step both are the clean images."""
        self._index += 1
        return self._latents[self._index], self._latents[-1]

    def _scheduler_before(self, index: int) -> Any:
        """A copy of the scheduler, set to the index of a step: timesteps can repeat, so they do not identify it."""
        scheduler = copy.copy(self._scheduler)
        write_steps(scheduler, self._steps)  # some pipelines make their latents before they set timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(index)
        return scheduler


def _fitting(file: Path, size: tuple[int, int]) -> "Image.Image":
    image = read_image(file)
    if image.size != size:
        width, height = image.size
        raise ConfigError(
            f"{file} is {width} x {height} pixels, and the pipeline runs at {size[0]} x {size[1]}",
            f"crop or resize the images, for example with PIL's ImageOps.fit, or set collect.width: {width} and "
            f"collect.height: {height}",
        )
    return image
