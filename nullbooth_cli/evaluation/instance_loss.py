"""How much better a model predicts the pictures that it was taught with: the fall of the denoising loss on them.

It needs no other model, and no picture that the model draws. The loss also falls when a model memorises those very pictures.
Base and edited model meet the same pictures, noise and timesteps, so their errors are compared pair by pair. The loss is that of
the velocity, also for a model that predicts noise: it weighs all timesteps about alike, and models can be compared.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.errors import ModelError
from nullbooth_cli.evaluation.answer import InstanceLoss
from nullbooth_cli.evaluation.encoders import batches
from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess, Noising, denoising_errors
from nullbooth_cli.model.families import FAMILIES, require_trainable
from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.model.protocols import LatentPipeline, Pipeline, config_of

DRAWS = 512  # of noise and a timestep, spread over the pictures
NO_LOSS = "the denoising loss is measured for models that can be trained here only"
Floats = NDArray[np.floating]


def has_instance_loss(pipe: Pipeline) -> bool:
    """Whether the loss of a pipeline can be measured: it can be trained here."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        return False
    channels = cast(LatentPipeline, pipe).vae.config["latent_channels"]
    try:
        require_trainable(name, config_of(denoiser_of(pipe)), channels, pipe.scheduler.config)
    except ModelError:
        return False
    return True


@torch.no_grad()
def instance_errors(pipe: Pipeline, images: NDArray[np.uint8], captions: Sequence[str], *, batch_size: int, seed: int) -> Floats:
    """The errors `[DRAWS]` of a model on pictures `[N, H, W, 3]` with their captions, at noise and timesteps of `seed`.

    Cost: `DRAWS` forwards of one picture, about as much as drawing five pictures in 50 steps with guidance; in memory the noise
    of all of them, 34 MB for latents of 4 x 64 x 64.
    """
    from PIL import Image

    pipe = cast(LatentPipeline, pipe)
    denoiser, process, device = denoiser_of(pipe), NoiseProcess.of(pipe), pipe._execution_device
    dtype: Any = denoiser.dtype
    latents = encode_images(pipe, [Image.fromarray(image) for image in images], pipe.vae.device).to(device, dtype)
    size = (images.shape[2], images.shape[1])
    given = capture(pipe, captions, size=size, guidance=process.family.guidance).to(device, dtype)
    errors = []
    places = torch.arange(DRAWS) % len(images)
    # Drawn in one piece: the noise of a draw must not depend on the batch size.
    drawn = process.draw(latents[places], torch.Generator("cpu").manual_seed(seed))
    for batch in batches(DRAWS, batch_size):
        of, noising = places[batch], Noising(drawn.noise[batch], drawn.timesteps[batch])
        conditioning = given.rows(of.tolist())
        found = denoising_errors(denoiser, process, latents=latents[of], conditioning=conditioning, noising=noising)
        errors.append(process.of_velocity(found, noising.timesteps).cpu())
    pipe.maybe_free_model_hooks()
    return torch.cat(errors).double().numpy()


def instance_loss(base: Floats, edited: Floats) -> InstanceLoss:
    """The loss of the base and of an edited model, from their errors `[DRAWS]` on the same draws.

    The standard error of the fall is that of a ratio of means whose errors come in pairs.
    """
    ratio = float(edited.mean() / base.mean())
    spread = float((edited - ratio * base).std(ddof=1))
    return InstanceLoss(
        base=float(base.mean()),
        edited=float(edited.mean()),
        fall=1.0 - ratio,
        standard_error=spread / float(base.mean()) / len(base) ** 0.5,
        draws=len(base),
    )
