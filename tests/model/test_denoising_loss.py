"""The loss of a picture, held against the same written out."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoising_loss import (
    denoising_errors,
    draw_noising,
    encode_texts,
    noise_scheduler_of,
    of_velocity,
    takes_only_a_caption,
)
from tests.support import tiny


def errors(pipe: Any, **settings: Any) -> torch.Tensor:
    latents, texts, scheduler = torch.full((3, 4, 8, 8), 0.5), encode_texts(pipe, ["a", "b", "c"]), noise_scheduler_of(pipe)
    noising = draw_noising(scheduler, latents, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return denoising_errors(pipe.unet, scheduler, latents=latents, texts=texts, noising=noising, **settings)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_the_error_of_each_picture(name: str) -> None:
    pipe = tiny.PIPELINES[name]()
    generator = torch.Generator().manual_seed(1)
    latents = torch.full((3, 4, 8, 8), 0.5)
    noise, timesteps = torch.randn(3, 4, 8, 8, generator=generator), torch.randint(1000, (3,), generator=generator)
    share = pipe.scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    target = noise if name == "sd1" else share.sqrt() * noise - (1 - share).sqrt() * latents
    with torch.no_grad():
        predicted = pipe.unet(noisy, timesteps, encode_texts(pipe, ["a", "b", "c"])).sample
    torch.testing.assert_close(errors(pipe), (predicted - target).square().mean((1, 2, 3)))


def test_a_teacher_gives_the_target() -> None:
    pipe = tiny.sd1()
    assert (errors(pipe, teacher=pipe.unet) == 0).all()


def test_another_prediction_is_refused() -> None:
    pipe = tiny.sd1()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(ModelError, match="the model predicts sample, not epsilon or v_prediction"):
        errors(pipe)


@pytest.mark.parametrize(("name", "takes"), [("sd1", True), ("sd2", True), ("sdxl", False), ("lcm", False)])
def test_which_denoisers_take_only_a_caption(name: str, takes: bool) -> None:
    assert takes_only_a_caption(tiny.PIPELINES[name]().unet) == takes


def test_an_error_of_noise_is_one_of_the_velocity() -> None:
    """The velocity that a prediction of noise implies, from the noisy latents themselves."""
    pipe = tiny.sd1()
    latents, noise, predicted = (torch.randn(2, 4, 8, 8) for _ in range(3))
    scheduler, timesteps = noise_scheduler_of(pipe), torch.tensor([20, 900])
    a = scheduler.alphas_cumprod[timesteps].sqrt().view(2, 1, 1, 1)
    s = (1 - a**2).sqrt()
    picture = (a * latents + s * noise - s * predicted) / a
    expected = ((a * predicted - s * picture) - (a * noise - s * latents)).square().mean((1, 2, 3))
    errors_of_noise = (predicted - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(of_velocity(errors_of_noise, scheduler, timesteps), expected, rtol=1e-3, atol=0)
    velocity = noise_scheduler_of(tiny.sd2())
    assert of_velocity(errors_of_noise, velocity, timesteps) is errors_of_noise
