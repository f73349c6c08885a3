"""The loss that text-to-image models are trained with: the squared error of what a denoiser predicts for a noised picture.

It is the loss of diffusers' train_dreambooth.py, for denoisers that take noisy latents, a timestep and a text, and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.protocols import Pipeline, StableDiffusion, config_of
from nullbooth_cli.model.quiet import quiet_libraries

PIPELINE = "StableDiffusionPipeline"
PREDICTIONS = ("epsilon", "v_prediction")


def takes_only_a_caption(denoiser: nn.Module) -> bool:
    """Whether a U-Net needs no more than noisy latents, a timestep and a text for a forward."""
    config = config_of(denoiser)
    return not config.get("addition_embed_type") and not config.get("time_cond_proj_dim")


def noising_of(pipe: Pipeline) -> Any:
    """A DDPMScheduler with the noise schedule of a pipeline, for `denoising_errors`."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def encode_texts(pipe: StableDiffusion, captions: Sequence[str]) -> torch.Tensor:
    """Captions as the denoiser takes them, `[N, L, D]`. Differentiable if the text encoder has parameters that train."""
    with quiet_libraries():  # it warns of a text that is too long at each call
        return pipe.encode_prompt(list(captions), pipe._execution_device, 1, False)[0]


def denoising_errors(
    denoiser: nn.Module,
    noising: Any,
    *,
    latents: torch.Tensor,
    texts: torch.Tensor,
    generator: torch.Generator,
    teacher: nn.Module | None = None,
) -> torch.Tensor:
    """Mean squared error `[B]` of each prediction for a batch, latents `[B, C, h, w]` and texts `[B, L, D]`, at random timesteps.

    The target is the noise (or velocity); with a teacher, the teacher's prediction. `noising` is a DDPMScheduler. Raises
    ModelError for a model that predicts anything else.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = torch.randint(noising.config.num_train_timesteps, (len(latents),), generator=generator).to(latents.device)
    noisy = noising.add_noise(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, texts, return_dict=False)[0]
    if teacher is not None:
        with torch.no_grad():
            target = teacher(noisy, timesteps, texts, return_dict=False)[0]
    elif noising.config.prediction_type not in PREDICTIONS:
        raise ModelError(
            f"the model predicts {noising.config.prediction_type}, not {' or '.join(PREDICTIONS)}", "train another model"
        )
    else:
        is_noise = noising.config.prediction_type == "epsilon"
        target = noise if is_noise else noising.get_velocity(latents, noise, timesteps)
    return F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
