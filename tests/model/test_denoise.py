"""The denoising path: seeds by row, and an early end."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, begin_denoising, denoise
from tests.support.builders import PROMPTS
from tests.support.pipelines import SmallPipeline

PATH = DenoisingPath(num_inference_steps=2, steps=(), guidance_scale=3.0, height=None, width=None, seed=5)


def test_it_is_the_pipelines_own_call_with_a_seed_by_row(pipe: Any) -> None:
    found = denoise(pipe, PATH, [(7, Prompt(PROMPTS[0])), (2, Prompt(PROMPTS[1]))])
    for latents, row, text in zip(found, (7, 2), PROMPTS, strict=False):
        alone = pipe([text], num_inference_steps=2, guidance_scale=3.0, generator=[seeded(5 + row)], output_type="latent").images
        np.testing.assert_allclose(latents, alone[0], rtol=1e-4, atol=1e-4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def test_pictures_are_in_rgb_from_0_to_1(pipe: Any) -> None:
    pictures = denoise(pipe, PATH, [(0, Prompt(PROMPTS[0]))], output_type="np")
    assert pictures.shape == (1, 32, 32, 3)
    assert 0 <= pictures.min() < pictures.max() <= 1


def test_a_size_that_the_pipeline_refuses_is_an_error_of_the_config(pipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"StableDiffusionPipeline refuses this: .*divisible by 8"):
        denoise(pipe, replace(PATH, height=30, width=32), [(0, Prompt(PROMPTS[0]))])


def test_a_batch_that_fixed_inputs_do_not_fit_is_an_error_of_the_config() -> None:
    class OfOneRow(SmallPipeline):
        def __call__(self, prompt: Any, *, num_inference_steps: int, generator: Any, rows: Any = None) -> Any:
            torch.ones(len(prompt), 2) + torch.ones(rows, 2)
            return super().__call__(prompt, num_inference_steps=num_inference_steps, generator=generator)

    path = replace(PATH, inputs={"rows": 2})
    three = [(row, Prompt(text)) for row, text in enumerate(PROMPTS[:3])]
    with pytest.raises(
        ConfigError, match=r"OfOneRow takes one prompt a call, not 3, with these collect.pipeline_inputs: The size"
    ):
        denoise(OfOneRow(), path, three)  # type: ignore[arg-type]
    denoise(OfOneRow(), path, three[:2])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        denoise(OfOneRow(), PATH, three)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_forwards", [0, 1, 2])
def test_it_ends_after_as_many_forwards(pipe: Any, num_forwards: int) -> None:
    ended: list[int] = []
    handle = pipe.unet.conv_out.register_forward_hook(lambda *_: ended.append(1))
    hooks = len(pipe.unet._forward_hooks)
    try:
        begin_denoising(pipe, replace(PATH, num_inference_steps=4), Prompt(PROMPTS[0]), num_forwards)
    finally:
        handle.remove()
    assert len(ended) == num_forwards
    assert len(pipe.scheduler.timesteps) == 4, "the pipeline has set the steps before its first forward"
    assert len(pipe.unet._forward_hooks) == hooks
