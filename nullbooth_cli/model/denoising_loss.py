"""The loss that text-to-image models are trained with: the squared error of what a denoiser predicts for a noised picture.

1. `noise_scheduler_of()` is the noise schedule of a pipeline, and `draw_noising()` draws noise and timesteps for a batch.
2. `denoising_errors()` has the error of each picture; their mean is the loss.

It is the loss of diffusers' train_dreambooth.py, for denoisers that take noisy latents, a timestep and a text only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


def noise_scheduler_of(pipe: Pipeline) -> Any:
    """A DDPMScheduler with the noise schedule of a pipeline, for `denoising_errors`."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def encode_texts(pipe: StableDiffusion, captions: Sequence[str]) -> torch.Tensor:
    """Captions as the denoiser takes them, `[N, L, D]`. Differentiable if the text encoder has parameters that train."""
    with quiet_libraries():  # it warns of a text that is too long at each call
        return pipe.encode_prompt(list(captions), pipe._execution_device, 1, False)[0]


@dataclass(frozen=True)
class Noising:
    """The noise `[B, C, h, w]` and the timesteps `[B]` of a batch."""

    noise: torch.Tensor
    timesteps: torch.Tensor


def draw_noising(scheduler: Any, latents: torch.Tensor, generator: torch.Generator) -> Noising:
    """Random noise and timesteps for latents `[B, C, h, w]`, on their device; `scheduler` is a DDPMScheduler."""
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    return Noising(noise, timesteps.to(latents.device))


def denoising_errors(
    denoiser: nn.Module,
    scheduler: Any,
    *,
    latents: torch.Tensor,
    texts: torch.Tensor,
    noising: Noising,
    teacher: nn.Module | None = None,
) -> torch.Tensor:
    """Mean squared error `[B]` of each prediction for a batch, latents `[B, C, h, w]` and texts `[B, L, D]`.

    The target is the noise (or velocity); with a teacher, the teacher's prediction. `scheduler` is a DDPMScheduler. Raises
    ModelError for a model that predicts anything else.
    """
    noise, timesteps = noising.noise, noising.timesteps
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, texts, return_dict=False)[0]
    prediction_type = scheduler.config.prediction_type
    if teacher is not None:
        with torch.no_grad():
            target = teacher(noisy, timesteps, texts, return_dict=False)[0]
    elif prediction_type not in PREDICTIONS:
        raise ModelError(f"the model predicts {prediction_type}, not {' or '.join(PREDICTIONS)}", "train another model")
    else:
        target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    return F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)


def of_velocity(errors: torch.Tensor, scheduler: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """Errors `[B]` of noise as those of the velocity that the same prediction implies; errors of velocity stay as they are.

    Near pure noise, noise is easily predicted, whatever the picture is; the velocity is as hard there as elsewhere.
    """
    if scheduler.config.prediction_type != "epsilon":
        return errors
    kept: torch.Tensor = scheduler.alphas_cumprod.to(errors)[timesteps]
    return errors / kept
