"""The loss that text-to-image models are trained with: the squared error of what a denoiser predicts for noised latents.

1. `NoiseProcess.of()` is the noise of a pipeline; it draws noise and timesteps for a batch.
2. `denoising_errors()` has the error of each picture; their mean is the loss. `predict()` is the forward in it.

Sources: diffusers' train_dreambooth.py (ddpm) and train_dreambooth_lora_flux.py (flow); Hang et al., arXiv 2303.09556 (min-SNR);
Esser et al., arXiv 2403.03206 (flow, densities).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.conditioning import Conditioning
from nullbooth_cli.model.families import PREDICTIONS, Family, family_of, training_scheduler, untrainable
from nullbooth_cli.model.latents import pack_latents
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.settings.recipe import Density


@dataclass(frozen=True)
class Noising:
    """The noise `[B, C, h, w]` and the timesteps `[B]` of a batch, in the unit of the scheduler."""

    noise: torch.Tensor
    timesteps: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseProcess:
    """How noise is mixed into latents, and what the denoiser is to predict of them.

    `scheduler` is a `training_scheduler`.
    """

    pipe: LatentPipeline
    family: Family
    scheduler: Any
    density: Density

    @classmethod
    def of(cls, pipe: LatentPipeline, density: Density | None = None) -> "NoiseProcess":
        """The noise process of a pipeline; timesteps have the family's density unless another is named.

        Raises ModelError for a pipeline that cannot be trained here, ConfigError for a density that the process does not have.
        """
        family, scheduler = family_of(type(pipe).__name__), training_scheduler(pipe)
        if family.noise == "ddpm" and scheduler.config.prediction_type not in PREDICTIONS:
            raise untrainable(
                type(pipe).__name__, f"it predicts {scheduler.config.prediction_type}, not {' or '.join(PREDICTIONS)}"
            )
        if density == "sigma_shift" and family.noise == "ddpm":
            raise ConfigError(
                f"timestep_density: sigma_shift is for models of flow matching, and {type(pipe).__name__} is none",
                "set timestep_density to uniform, logit_normal, mode, or null",
            )
        return cls(pipe=pipe, family=family, scheduler=scheduler, density=density or family.density)

    def draw(self, latents: torch.Tensor, generator: torch.Generator) -> Noising:
        """Random noise and timesteps for latents `[B, C, h, w]`, on their device."""
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return Noising(noise, self._timesteps(latents, generator).to(latents.device))

    def _timesteps(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from diffusers.training_utils import compute_density_for_timestep_sampling

        count: int = self.scheduler.config.num_train_timesteps
        if self.density == "uniform" and self.family.noise == "ddpm":
            return torch.randint(count, (len(latents),), generator=generator)
        if self.density == "sigma_shift":
            sigmas = torch.sigmoid(torch.randn(len(latents), generator=generator))
            shift = self._shift(latents)
            shifted: torch.Tensor = count * shift * sigmas / (1 + (shift - 1) * sigmas)
            return shifted
        # Mean, deviation and scale are the defaults of diffusers' scripts.
        drawn = compute_density_for_timestep_sampling(
            self.density, len(latents), logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=generator
        )
        places = (drawn * count).long().clamp(max=count - 1)
        timesteps: torch.Tensor = places if self.family.noise == "ddpm" else self.scheduler.timesteps[places]
        return timesteps

    def _shift(self, latents: torch.Tensor) -> float:
        """The shift of sigmas with which the pipeline draws pictures of this size."""
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        tokens = latents.shape[-2] * latents.shape[-1] // 4
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return math.exp(calculate_shift(tokens, *(config[name] for name in names)))

    def noised(self, latents: torch.Tensor, noising: Noising) -> torch.Tensor:
        """Latents `[B, C, h, w]` with noise."""
        if self.family.noise == "ddpm":
            mixed: torch.Tensor = self.scheduler.add_noise(latents, noising.noise, noising.timesteps)
        else:
            sigmas = (noising.timesteps / self.scheduler.config.num_train_timesteps).to(latents).view(-1, 1, 1, 1)
            mixed = (1.0 - sigmas) * latents + sigmas * noising.noise
        return mixed

    def target(self, latents: torch.Tensor, noising: Noising) -> torch.Tensor:
        """What the denoiser should predict, as latents `[B, C, h, w]`."""
        if self.family.noise == "flow":
            return noising.noise - latents
        if self.scheduler.config.prediction_type == "epsilon":
            return noising.noise
        velocity: torch.Tensor = self.scheduler.get_velocity(latents, noising.noise, noising.timesteps)
        return velocity

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[B, C, h, w]` in the shape that the denoiser takes and predicts."""
        return pack_latents(self.pipe, latents) if self.family.packed else latents

    def min_snr(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """The weights `[B]` of min-SNR for errors at timesteps: min(SNR, gamma) over SNR, for velocity over SNR + 1."""
        kept = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        ratio = kept / (1.0 - kept)
        if self.scheduler.config.prediction_type == "epsilon":
            weights: torch.Tensor = (gamma / ratio).clamp(max=1.0)  # 1 where nothing is left of the picture
        else:
            weights = ratio.clamp(max=gamma) / (ratio + 1.0)
        return weights

    def of_velocity(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Errors `[B]` of noise as those of the velocity that the same prediction implies; errors of velocity stay as they are.

        Near pure noise, noise is easily predicted, whatever the picture is; the velocity is as hard there as elsewhere.
        """
        if self.family.noise == "flow" or self.scheduler.config.prediction_type != "epsilon":
            return errors
        kept: torch.Tensor = self.scheduler.alphas_cumprod.to(errors)[timesteps]
        return errors / kept


def predict(
    denoiser: Callable[..., Any],
    process: NoiseProcess,
    *,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Conditioning,
) -> torch.Tensor:
    """What a denoiser predicts for noisy latents `[B, C, h, w]` at timesteps `[B]`, in the shape of `process.packed(noisy)`.

    Half of the channels of a denoiser with a learned variance are that variance, which is left out.
    """
    given = process.packed(noisy)
    # Integers stay integers: U-Nets embed them either way, and a product would round none of them.
    times = timesteps if process.family.timestep_unit == 1.0 else timesteps * process.family.timestep_unit
    predicted: torch.Tensor = denoiser(given, timestep=times, **{**conditioning.arguments(), "return_dict": False})[0]
    return predicted if predicted.shape[1] == given.shape[1] else predicted.chunk(2, dim=1)[0]


def denoising_errors(
    denoiser: nn.Module,
    process: NoiseProcess,
    *,
    latents: torch.Tensor,
    conditioning: Conditioning,
    noising: Noising,
    teacher: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """Mean squared error `[B]` of each prediction for a batch of latents `[B, C, h, w]` and B rows of conditioning.

    The target is the noise or velocity; with a teacher, the teacher's prediction.
    """
    noisy = process.noised(latents, noising)
    given: dict[str, Any] = {"noisy": noisy, "timesteps": noising.timesteps, "conditioning": conditioning}
    predicted = predict(denoiser, process, **given)
    if teacher is not None:
        with torch.no_grad():
            target = predict(teacher, process, **given)
    else:
        target = process.packed(process.target(latents, noising))
    return F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
