"""Images to latents: what plain calls of the autoencoder and plain arithmetic give."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from nullbooth_cli.model.latents import encode_images, pack_latents, scale_latents
from nullbooth_cli.model.protocols import Autoencoder, LatentPipeline
from tests.support.pictures import picture


def scaled(latents: torch.Tensor, **config: Any) -> np.ndarray:
    return scale_latents(cast(Autoencoder, SimpleNamespace(config=config)), latents).numpy()


LATENTS = torch.arange(2 * 4 * 2 * 2, dtype=torch.float32).reshape(2, 4, 2, 2)


@pytest.mark.parametrize(
    ("config", "shift", "factor"),
    [({}, 0, 1), ({"scaling_factor": 0.5}, 0, 0.5), ({"scaling_factor": 0.25, "shift_factor": 2.0}, 2, 0.25)],
)
def test_one_shift_and_factor(config: dict[str, float], shift: float, factor: float) -> None:
    np.testing.assert_allclose(scaled(LATENTS, **config), (LATENTS.numpy() - shift) * factor, rtol=1e-6)


def test_means_by_channel_take_the_place_of_the_shift() -> None:
    means, deviations = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    found = scaled(LATENTS, latents_mean=means, latents_std=deviations, shift_factor=9.0, scaling_factor=3.0)
    for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        np.testing.assert_allclose(found[:, channel], (LATENTS[:, channel].numpy() - mean) * 3 / deviation, rtol=1e-6)


def test_images_are_encoded_at_the_mean_in_float32(pipe: Any) -> None:
    images = [picture(i, 32, 32) for i in range(2)]
    found = encode_images(pipe, images, torch.device("cpu"))
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = pipe.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_autoencoder_gets_its_dtype_back(pipe: Any) -> None:
    own = cast(LatentPipeline, SimpleNamespace(vae=copy.deepcopy(pipe.vae).to(torch.bfloat16)))
    assert encode_images(own, [picture(0, 32, 32)], torch.device("cpu")).dtype == torch.float32
    assert own.vae.dtype == torch.bfloat16


def test_latents_without_tokens_stay_as_they_are(pipe: Any) -> None:
    assert pack_latents(pipe, LATENTS) is LATENTS


def test_flux_has_two_by_two_places_in_a_token() -> None:
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    packed = pack_latents(cast(LatentPipeline, FluxPipeline), latents)
    assert packed.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
