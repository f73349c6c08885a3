"""Draws the pictures of an evaluation: with every model, the same prompts from the same noise along the stored schedule.

1. `PictureSpec` is a prompt and the number of one of its pictures. Its noise follows from these two alone: other prompts, their
   order and the batch size do not change it. This noise was never used during collection.
2. `draw_pictures()` yields pictures and latents batch by batch, in host memory: 3 bytes a pixel, and 4 a latent value.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ModelError
from nullbooth_cli.evaluation.encoders import batches
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.latents import encode_images, scale_latents
from nullbooth_cli.model.protocols import Autoencoder, LatentPipeline, Pipeline
from nullbooth_cli.settings.images import read_image
from nullbooth_cli.settings.resizing import crop

POOLED = 4


@dataclass(frozen=True)
class PictureSpec:
    """A picture to draw: the `number`-th of a prompt, from 0.

    `targets` are the texts that an edited prompt should look like. The picture of a target starts from the noise of the edited
    prompt `source`; None for the noise of the prompt itself.
    """

    prompt: Prompt
    number: int = 0
    targets: tuple[str, ...] = ()
    source: str | None = None

    def noise(self, series: int) -> int:
        """A number to add to the seed, different for each series: 32 bits of a digest, because torch's CPU generator takes 32."""
        text = self.prompt.text if self.source is None else self.source
        digest = hashlib.sha256(f"{text}\n{self.number}\n{series}".encode()).hexdigest()
        return int(digest[:8], 16)

    def of_targets(self) -> "tuple[PictureSpec, ...]":
        """A picture of each target, from the noise of this one."""
        return tuple(PictureSpec(Prompt(target), self.number, source=self.prompt.text) for target in self.targets)

    @property
    def name(self) -> str:
        """`<prompt id>-<number>`, for a file."""
        return f"{self.prompt.id}-{self.number}"


@dataclass(frozen=True)
class Pictures:
    """Pictures `[N, H, W, 3]` in 8 bits, and the latents they were decoded from, `[N, C, h, w]` in the denoiser's scale."""

    images: NDArray[np.uint8]
    latents: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: "Sequence[Pictures]") -> "Pictures":
        """The pictures of several batches, in their order."""
        return cls(np.concatenate([part.images for part in parts]), np.concatenate([part.latents for part in parts]))

    def pooled(self) -> NDArray[np.float32]:
        """The latents averaged over a grid of 4 x 4 places, `[N, 16 C]`: the composition without single pixels."""
        return pool(torch.from_numpy(self.latents))


def pool(latents: torch.Tensor) -> NDArray[np.float32]:
    """`[N, 16 C]` of latents `[N, C, h, w]`, averaged over a grid of 4 x 4 places."""
    return np.asarray(adaptive_avg_pool2d(latents, POOLED).flatten(1).numpy())


def draw_pictures(
    pipe: Pipeline, path: DenoisingPath, specs: Sequence[PictureSpec], batch_size: int, series: int = 0
) -> Iterator[Pictures]:
    """Draw the specs, a batch at a time; each series starts from other noise. Raises ModelError without an autoencoder."""
    if getattr(pipe, "vae", None) is None:
        raise ModelError(f"{type(pipe).__name__} has no autoencoder: it draws in pixels", "evaluate a latent diffusion model")
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)  # it blackens pictures, which would count as a difference between models
    latents: list[torch.Tensor] = []
    with _decoded(cast(LatentPipeline, pipe).vae, latents.append):
        for batch in batches(len(specs), batch_size):
            images = denoise(pipe, path, [(spec.noise(series), spec.prompt) for spec in specs[batch]], "np")
            require_pictures(pipe, images)
            yield Pictures((images * 255).round().astype(np.uint8), torch.cat(latents).numpy())
            latents.clear()


def require_pictures(pipe: Pipeline, drawn: NDArray[Any]) -> None:
    """Raise ModelError unless a pipeline has drawn pictures `[B, H, W, 3]`: videos have one axis more."""
    if drawn.ndim != 4 or drawn.shape[-1] != 3:
        raise ModelError(
            f"{type(pipe).__name__} draws {list(drawn.shape)}, not pictures [B, H, W, 3]",
            "draw its videos with diffusers; collect, project and constrain work without pictures",
        )


@contextmanager
def _decoded(vae: Autoencoder, receive: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Pass on the latents that enter `vae.decode`, which every pipeline calls at the end of its denoising path."""
    decode = vae.decode

    def decode_and_pass_on(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        receive(scale_latents(vae, latents.detach().float().cpu()))
        return decode(latents, *args, **kwargs)

    vae.decode = decode_and_pass_on
    try:
        yield
    finally:
        del vae.decode


def read_images(files: Sequence[Path], height: int, width: int) -> NDArray[np.uint8]:
    """Picture files, cut to the middle and resized, `[N, height, width, 3]`; raises as `read_image` does."""
    return np.stack([np.asarray(crop(read_image(file), (width, height))) for file in files])


def pooled_latents(pipe: LatentPipeline, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The latents of pictures `[N, H, W, 3]`, encoded by the pipeline's autoencoder and averaged as in `Pictures.pooled`."""
    from PIL import Image

    return pool(encode_images(pipe, [Image.fromarray(image) for image in images], pipe.vae.device).cpu())
