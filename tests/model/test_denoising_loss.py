"""The loss of a picture, held against the same written out, and the first step of each pipeline."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess, Noising, denoising_errors, predict
from nullbooth_cli.model.latents import pack_latents, size_settings
from nullbooth_cli.model.load import freeze
from tests.support import tiny

TRAINED = ("sd1", "sd2", "sdxl", "sd3", "flux", "pixart", "pixart_alpha", "pixart_alpha_512")
FLOW = ("sd3", "flux")
LATENTS = torch.linspace(-1, 1, 3 * 4 * 8 * 8).view(3, 4, 8, 8)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return freeze((tiny.PIPELINES | tiny.VARIANTS)[name]())


def given(pipe: Any, captions: list[str]) -> Any:
    """The conditioning for latents of 8 x 8."""
    size = (8 * pipe.vae_scale_factor,) * 2
    return capture(pipe, captions, size=size, guidance=NoiseProcess.of(pipe).family.guidance)


@torch.no_grad()
def errors(pipe: Any, **settings: Any) -> torch.Tensor:
    process = NoiseProcess.of(pipe)
    noising = process.draw(LATENTS, torch.Generator().manual_seed(1))
    conditioning = given(pipe, ["a", "b", "c"])
    return denoising_errors(denoiser_of(pipe), process, latents=LATENTS, conditioning=conditioning, noising=noising, **settings)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_the_error_of_each_picture(name: str) -> None:
    """The draws too are those of the runs before there were families."""
    pipe, generator = made(name), torch.Generator().manual_seed(1)
    noise, timesteps = torch.randn(3, 4, 8, 8, generator=generator), torch.randint(1000, (3,), generator=generator)
    share = pipe.scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    noisy = share.sqrt() * LATENTS + (1 - share).sqrt() * noise
    target = noise if name == "sd1" else share.sqrt() * noise - (1 - share).sqrt() * LATENTS
    predicted = pipe.unet(noisy, timesteps, pipe.encode_prompt(["a", "b", "c"], "cpu", 1, False)[0]).sample
    torch.testing.assert_close(errors(pipe), (predicted - target).square().mean((1, 2, 3)))


def test_the_error_of_flow_matching() -> None:
    """SD3, with the sigmas of its constructor, shifted by 3, whatever picture it drew before."""
    pipe = made("sd3")
    pipe(["a"], height=16, width=16, num_inference_steps=2, output_type="latent")
    generator = torch.Generator().manual_seed(1)
    noise, drawn = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, generator=generator).sigmoid()
    even = 1 - np.floor(drawn.numpy() * 1000) / 1000
    sigmas = torch.from_numpy(3 * even / (1 + 2 * even)).float().view(3, 1, 1, 1)
    conditioning = given(pipe, ["a", "b", "c"]).arguments()
    predicted = pipe.transformer((1 - sigmas) * LATENTS + sigmas * noise, timestep=1000 * sigmas.flatten(), **conditioning)[0]
    torch.testing.assert_close(errors(pipe), (predicted - (noise - LATENTS)).square().mean((1, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_a_teacher_gives_the_target(name: str) -> None:
    pipe = made(name)
    assert (errors(pipe, teacher=denoiser_of(pipe)) == 0).all()
    assert (errors(pipe) > 0).all()


def first_step(pipe: Any, start: torch.Tensor, guidance: float) -> tuple[torch.Tensor, float]:
    """The latents after the first of four steps of a pipeline, and the timestep that its denoiser received in it."""
    after, times = [], []
    name = "callback" if "callback" in inspect.signature(type(pipe).__call__).parameters else "callback_on_step_end"
    keep = {
        "callback": lambda _, __, latents: after.append(latents),
        "callback_on_step_end": lambda _, __, ___, given: after.append(given["latents"]) or {},
    }
    side = start.shape[-1] * pipe.vae_scale_factor
    handle = denoiser_of(pipe).register_forward_pre_hook(
        lambda _, args, given: times.append(given["timestep"] if "timestep" in given else args[1]), with_kwargs=True
    )
    pipe(
        ["a red circle"],
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=pack_latents(pipe, start),
        output_type="latent",
        **{name: keep[name]},
        **size_settings(pipe, (side, side)),
    )
    handle.remove()
    return after[0], float(times[0].flatten()[0])


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_the_first_step_is_that_of_the_pipeline(name: str) -> None:
    """One Euler step with our own forward, and the same step of the pipeline, in float32, to the bit."""
    pipe = made(name)
    if name not in FLOW:
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    process, scheduler = NoiseProcess.of(pipe), pipe.scheduler
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    conditioning = given(pipe, ["a red circle"])
    expected, time = first_step(pipe, start, process.family.guidance)
    assert time == float(scheduler.timesteps[0] * process.family.timestep_unit)
    noisy = latents = start
    if name not in FLOW:
        scheduler.set_timesteps(4)  # it counts its steps
        latents = start * scheduler.init_noise_sigma
        noisy = scheduler.scale_model_input(latents, scheduler.timesteps[0])
    asked = {"noisy": noisy, "timesteps": scheduler.timesteps[:1], "conditioning": conditioning}
    predicted = predict(denoiser_of(pipe), process, **asked)
    if name in FLOW:
        own = pack_latents(pipe, latents) + (scheduler.sigmas[1] - scheduler.sigmas[0]) * predicted
    else:
        own = scheduler.step(predicted, scheduler.timesteps[0], latents).prev_sample
    assert torch.equal(own, expected)
    assert not torch.equal(own, pack_latents(pipe, latents))


def test_another_prediction_is_refused() -> None:
    pipe = tiny.sd1()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(ModelError, match="it predicts sample, not epsilon or v_prediction"):
        errors(pipe)


def test_an_error_of_noise_is_one_of_the_velocity() -> None:
    """The velocity that a prediction of noise implies, from the noisy latents themselves."""
    latents, noise, predicted = (torch.randn(2, 4, 8, 8) for _ in range(3))
    process, timesteps = NoiseProcess.of(tiny.sd1()), torch.tensor([20, 900])
    a = process.scheduler.alphas_cumprod[timesteps].sqrt().view(2, 1, 1, 1)
    s = (1 - a**2).sqrt()
    picture = (a * latents + s * noise - s * predicted) / a
    expected = ((a * predicted - s * picture) - (a * noise - s * latents)).square().mean((1, 2, 3))
    errors_of_noise = (predicted - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(process.of_velocity(errors_of_noise, timesteps), expected, rtol=1e-3, atol=0)
    for name in ("sd2", "sd3", "flux"):
        assert NoiseProcess.of(made(name)).of_velocity(errors_of_noise, timesteps) is errors_of_noise


@pytest.mark.parametrize(("name", "extra"), [("sd1", 0.0), ("sdxl", 0.0), ("pixart", 0.0), ("sd2", 1.0)])
def test_min_snr(name: str, extra: float) -> None:
    process, timesteps = NoiseProcess.of(made(name)), torch.tensor([0, 300, 999])
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)[timesteps.numpy()]
    snr = kept / (1 - kept)
    np.testing.assert_allclose(process.min_snr(timesteps, 5.0).numpy(), np.minimum(snr, 5) / (snr + extra), rtol=1e-3)


def densities(name: str, density: Any, size: int = 8) -> np.ndarray[Any, Any]:
    """Sigmas or shares of time of 4000 draws, sorted."""
    process = NoiseProcess.of(made(name), density)
    drawn = process.draw(torch.zeros(4000, 1, size, size), torch.Generator().manual_seed(0)).timesteps
    return np.sort(drawn.double().numpy()) / 1000


def shifted(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def assert_drawn(found: Any, quantiles: Any) -> None:
    """By the test of Kolmogorov and Smirnov; 4000 draws are as far off as 0.031 by a chance of 1 in 1000."""
    assert np.abs(np.searchsorted(quantiles, found) / 4000 - EVEN).max() < 0.031


EVEN = (np.arange(4000) + 0.5) / 4000
NORMAL = torch.special.ndtri(torch.from_numpy(EVEN)).sigmoid().numpy()
DRAWN = {
    ("sd1", None): EVEN,
    ("sd1", "logit_normal"): NORMAL,
    ("pixart", None): EVEN,
    ("flux", None): EVEN,  # its scheduler shifts when it draws, not here
    ("flux", "uniform"): EVEN,
    ("flux", "logit_normal"): NORMAL,
    ("sd3", None): shifted(NORMAL, 3.0),
    ("sd3", "uniform"): shifted(EVEN, 3.0),
    ("sd3", "sigma_shift"): shifted(NORMAL, 3.0),
    ("flux", "mode"): np.sort(1 - (1 - EVEN - 1.29 * (np.cos(np.pi * EVEN / 2) ** 2 - 1 + EVEN))),
}


@pytest.mark.parametrize(("name", "density"), DRAWN)
def test_timesteps_have_the_density_of_the_model_or_of_the_recipe(name: str, density: Any) -> None:
    assert_drawn(densities(name, density), DRAWN[name, density])


def test_flux_is_shifted_as_it_draws_pictures_of_the_size() -> None:
    for size, tokens in ((8, 16), (64, 1024)):
        mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
        assert_drawn(densities("flux", "sigma_shift", size), shifted(NORMAL, math.exp(mu)))


def test_no_model_of_noise_is_shifted() -> None:
    with pytest.raises(ConfigError, match="sigma_shift is for models of flow matching, and StableDiffusionXLPipeline is none"):
        NoiseProcess.of(made("sdxl"), "sigma_shift")


def test_latents_stay_float32_between_sigmas() -> None:
    process = NoiseProcess.of(made("flux"))
    noising = Noising(torch.ones(1, 4, 8, 8), torch.tensor([250.0]))
    torch.testing.assert_close(process.noised(torch.zeros(1, 4, 8, 8), noising), torch.full((1, 4, 8, 8), 0.25))
