"""Pictures of the subject and of its class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.settings.images import read_image
from nullbooth_cli.training import setup
from nullbooth_cli.training.before_loading import read_inputs
from nullbooth_cli.training.examples import Examples, encode_pictures
from tests.support.phone_pictures import write_phone_pictures
from tests.support.pictures import picture
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe


def test_class_pictures_are_those_that_the_model_draws(tmp_path: Path) -> None:
    made = recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=3, validation_inference_steps=5)
    first, again = (setup.set_up(made, "cpu").prior for _ in range(2))
    assert [latents.shape for latents in first.latents] == [(8, 8, 8)] * 3
    assert torch.equal(torch.stack(first.latents), torch.stack(again.latents))
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


def in_buckets(shapes: Sequence[tuple[int, int]], repeats: Sequence[int]) -> Examples:
    """Latents of these shapes, each filled with its number, as are the texts."""
    latents = [torch.full((1, *shape), float(i)) for i, shape in enumerate(shapes)]
    numbers = torch.arange(float(len(shapes))).view(-1, 1, 1)
    return Examples(latents=latents, captions=[str(i) for i in range(len(shapes))], texts=numbers, repeats=repeats)


def test_a_batch_has_pictures_of_one_bucket(tmp_path: Path) -> None:
    examples = in_buckets([(4, 4), (2, 8), (4, 4), (8, 2), (2, 8)], ())
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        latents, texts = examples.batch(generator, 6)
        assert latents.shape[0] == 6
        seen.add(latents.shape[2:])
        assert torch.equal(latents[:, 0, 0, 0], texts[:, 0, 0]), "each with its own caption"
    assert seen == {(4, 4), (2, 8), (8, 2)}


@pytest.mark.parametrize("repeats", [(), (1, 3, 1, 2, 1)])
def test_in_buckets_every_picture_is_drawn_as_often_as_it_weighs(repeats: tuple[int, ...]) -> None:
    """Over 4000 batches of 5; pictures of a batch are drawn together, so the deviation is that of 4000 draws."""
    examples, generator = in_buckets([(4, 4), (2, 8), (4, 4), (4, 4), (2, 8)], repeats), torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(4000):
        _, texts = examples.batch(generator, 5)
        counts += torch.bincount(texts.flatten().long(), minlength=5)
    expected = torch.tensor(repeats or (1.0,) * 5) / sum(repeats or (1,) * 5)
    assert torch.allclose(counts / counts.sum(), expected, atol=4 * (0.25 / 4000) ** 0.5)


def test_pictures_of_one_size_are_drawn_as_without_buckets() -> None:
    """The numbers that decided a run before there were buckets."""
    examples = in_buckets([(4, 4)] * 3, [2, 1, 4])
    _, texts = examples.batch(torch.Generator().manual_seed(5), 8)
    places = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    assert torch.equal(texts.flatten().long(), places[torch.randint(7, (8,), generator=torch.Generator().manual_seed(5))])


def test_latents_are_those_of_the_pictures_as_they_are_cropped(tmp_path: Path, pipe: Any) -> None:
    """Phone pictures as they are, and the same turned, cropped and scaled beforehand, to the bit."""
    folder, ready = tmp_path / "phone", tmp_path / "ready"
    ready.mkdir()
    for path in write_phone_pictures(folder):
        ImageOps.fit(read_image(path), (32, 32), Image.Resampling.LANCZOS).save(ready / f"{path.stem}.png")
    found = {}
    for place, how in ((folder, "crop"), (ready, "none")):
        made = recipe(tmp_path, instance_images=str(place), instance_prompt="a sks circle", resize=how)
        inputs = read_inputs(made, ())
        paths = sorted((picture.path for picture in inputs.pictures), key=lambda path: path.stem)
        found[how] = torch.stack(encode_pictures(pipe, paths, inputs.resizing))
    assert found["crop"].shape == (10, 8, 8, 8)
    assert torch.equal(found["crop"], found["none"])
    images = [Image.open(path) for path in sorted(ready.iterdir(), key=lambda path: path.stem)]
    assert torch.equal(found["none"], encode_images(pipe, images, pipe.device))
