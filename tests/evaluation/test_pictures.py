"""Pictures are drawn from noise of their own; edited models are opened whatever form they have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.collect import open_model
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation import pictures
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.model import denoise, load
from tests.support import tiny
from tests.support.builders import PROMPTS
from tests.support.pictures import picture


class TestDrawing:
    def test_noise_is_a_prompts_own(self, run: Any, pipe: Any) -> None:
        """In any company, order and batch; and of a size that torch's CPU generator does not cut."""
        path = open_model.follow_schedule(run[0], run[1].schedule(), pipe)
        specs = [PictureSpec(Prompt(text)) for text in PROMPTS[:4]]
        together = pictures.Pictures.joined(list(pictures.draw_pictures(pipe, path, specs, 3)))
        alone = pictures.Pictures.joined(list(pictures.draw_pictures(pipe, path, specs[::-1][:2], 1)))
        np.testing.assert_allclose(alone.latents[::-1], together.latents[2:], rtol=1e-3, atol=1e-4)
        noises = {spec.noise(series) for spec in (*specs, PictureSpec(specs[0].prompt, 1)) for series in (0, 1)}
        assert len(noises) == 10
        assert max(noises) < 1 << 32

    def test_a_target_starts_from_the_noise_of_the_edited_prompt(self) -> None:
        spec = PictureSpec(Prompt("a sks star"), 2, targets=("a red star", ""))
        first, second = spec.of_targets()
        assert [each.prompt.text for each in (first, second)] == ["a red star", ""]
        assert {each.noise(1) for each in (first, second)} == {PictureSpec(Prompt("a sks star"), 2).noise(1)}
        assert spec.noise(0) != PictureSpec(Prompt("a red star"), 2).noise(0)

    @pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
    def test_latents_are_those_that_the_pipeline_gives(self, name: str) -> None:
        """Whatever a pipeline does between its latents and its autoencoder: scale, shift, unpack."""
        torch.manual_seed(0)
        pipe = load.freeze(tiny.PIPELINES[name]())
        pipe.vae.register_to_config(shift_factor=None if name == "sdxl" else 0.1)
        path, spec = (
            denoise.DenoisingPath(num_inference_steps=2, steps=(), guidance_scale=3.0, height=32, width=32, seed=0),
            PictureSpec(Prompt("a")),
        )
        [drawn] = pictures.draw_pictures(pipe, path, [spec], 1)
        given = denoise.denoise(pipe, path, [(spec.noise(0), spec.prompt)])
        # Flux packs its latents: the same values in another order.
        np.testing.assert_allclose(np.sort(drawn.latents.ravel()), np.sort(given.numpy().ravel()), atol=1e-5)
        assert "decode" not in vars(pipe.vae)

    def test_pictures_are_encoded_back_to_their_latents(self, run: Any, pipe: Any) -> None:
        path = open_model.follow_schedule(run[0], run[1].schedule(), pipe)
        [drawn] = pictures.draw_pictures(pipe, path, [PictureSpec(Prompt(text)) for text in PROMPTS[:2]], 2)
        own = np.linalg.norm(pictures.pooled_latents(pipe, drawn.images) - drawn.pooled(), axis=1)
        other = np.linalg.norm(pictures.pooled_latents(pipe, drawn.images)[::-1] - drawn.pooled(), axis=1)
        assert (own < 0.7 * other).all()  # the autoencoder does not know pictures of four steps well


def test_pictures_of_any_kind_and_size_are_read(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "b.BMP")
    picture(1, 40, 24).save(tmp_path / "a.tif")
    assert pictures.read_images([tmp_path / "b.BMP", tmp_path / "a.tif"], 8, 16).shape == (2, 8, 16, 3)
