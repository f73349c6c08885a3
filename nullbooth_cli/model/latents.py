"""Images to latents, in the scale and shape of the denoiser, and the size of what a pipeline draws."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nullbooth_cli.model.protocols import Autoencoder, LatentPipeline, Pipeline
from nullbooth_cli.model.quiet import quiet_libraries

if TYPE_CHECKING:
    from PIL import Image


def pack_latents(pipe: LatentPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Latents `[B, C, h, w]` as the pipeline hands them to its denoiser: Flux, for one, puts 2 x 2 places into one token."""
    packed: torch.Tensor = pipe._pack_latents(latents, *latents.shape) if hasattr(pipe, "_pack_latents") else latents
    return packed


def unpack_latents(pipe: LatentPipeline, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Latents of pictures of a width and height, as `pack_latents` packed them, as `[B, C, h, w]` again."""
    if not hasattr(pipe, "_unpack_latents"):
        return latents
    width, height = size
    unpacked: torch.Tensor = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    return unpacked


def size_settings(pipe: Pipeline, size: tuple[int, int]) -> dict[str, Any]:
    """The settings of a call that draws exactly this width and height: PixArt would take the nearest that it knows."""
    binning = "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters
    return {"width": size[0], "height": size[1], **({"use_resolution_binning": False} if binning else {})}


@torch.no_grad()
@quiet_libraries()
def encode_images(pipe: LatentPipeline, images: Sequence["Image.Image"], device: torch.device) -> torch.Tensor:
    """`[B, C, h, w]` float32: the latents of images in the denoiser's scale. Encodes one image at a time, on the device."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

    vae, own_dtype, own_device = pipe.vae, pipe.vae.dtype, pipe.vae.device
    vae.to(torch.float32).to(device)  # the encoders of SD and SDXL overflow in float16; an offloaded one is in host memory
    try:
        found = [retrieve_latents(vae.encode(_pixels(image).to(device)), sample_mode="argmax") for image in images]
    finally:
        vae.to(own_dtype).to(own_device)
    return scale_latents(vae, torch.cat(found))


def scale_latents(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """An autoencoder's latents `[B, C, h, w]` in the denoiser's scale: (z - shift) * factor, by channel if it has such means."""
    config = vae.config
    shift, spread = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(1.0)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, spread = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    scaled: torch.Tensor = (latents - shift.to(latents)) * (config.get("scaling_factor") or 1.0) / spread.to(latents)
    return scaled


def _pixels(image: "Image.Image") -> torch.Tensor:
    """`[1, 3, h, w]` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
