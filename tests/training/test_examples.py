"""Pictures of the subject and of its class."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.training import setup
from nullbooth_cli.training.examples import Examples
from tests.support.pictures import picture
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe


def test_class_pictures_are_those_that_the_model_draws(tmp_path: Path) -> None:
    made = recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=3, validation_inference_steps=5)
    first, again = (setup.set_up(made, "cpu").prior for _ in range(2))
    assert first.latents.shape == (3, 8, 8, 8)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.texts[0], first.texts[2])


def test_repeats_are_weights() -> None:
    given = {"latents": torch.arange(3.0).view(3, 1, 1, 1), "captions": ["a", "b", "c"], "texts": torch.zeros(3, 1, 1)}
    generator = torch.Generator().manual_seed(0)
    latents, _ = Examples(**given, repeats=[1, 0, 3]).batch(generator, 4000)
    counts = torch.bincount(latents.flatten().long(), minlength=3).tolist()
    assert counts[1] == 0
    assert counts[2] == pytest.approx(3000, abs=100)
    alike = [Examples(**given, repeats=repeats).batch(torch.Generator().manual_seed(0), 9)[0] for repeats in ((), (1, 1, 1))]
    assert torch.equal(*alike)


def test_folders_with_numbers_are_repeated(tmp_path: Path) -> None:
    for seed, folder in enumerate(("2_a sks circle", "5_a sks star")):
        (tmp_path / folder).mkdir()
        picture(seed).save(tmp_path / folder / "x.png")
    subject = setup.set_up(recipe(tmp_path / "out", instance_images=str(tmp_path)), "cpu").subject
    assert (subject.captions, subject.repeats) == (["a sks circle", "a sks star"], [2, 5])


def test_pictures_of_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("a sks circle")
    with pytest.raises(ConfigError, match=r"wide\.png is 48 x 32 pixels, the model draws 32 x 32"):
        setup.set_up(recipe(tmp_path / "out", instance_images=str(tmp_path)), "cpu")
