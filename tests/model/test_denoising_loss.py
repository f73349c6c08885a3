"""The loss of a picture, held against the same written out."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoising_loss import denoising_errors, encode_texts, noising_of, takes_only_a_caption
from tests.support import tiny


def errors(pipe: Any, **settings: Any) -> torch.Tensor:
    given = {"latents": torch.full((3, 4, 8, 8), 0.5), "texts": encode_texts(pipe, ["a", "b", "c"])}
    noising = noising_of(pipe)
    with torch.no_grad():
        return denoising_errors(pipe.unet, noising, **given, generator=torch.Generator().manual_seed(1), **settings)


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
