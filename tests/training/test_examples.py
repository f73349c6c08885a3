"""Pictures of the subject and of its class."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.training import setup
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe


def test_class_pictures_are_those_that_the_model_draws(tmp_path: Path) -> None:
    made = recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=3, validation_inference_steps=5)
    first, again = (setup.set_up(made, "cpu").prior for _ in range(2))
    assert first.latents.shape == (3, 8, 8, 8)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.texts[0], first.texts[2])


def test_pictures_of_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("a sks circle")
    with pytest.raises(ConfigError, match=r"wide\.png is 48 x 32 pixels, the model draws 32 x 32"):
        setup.set_up(recipe(tmp_path / "out", instance_images=str(tmp_path)), "cpu")
