"""Pictures of the subject and of its class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.model.load import freeze
from nullbooth_cli.settings.images import read_image
from nullbooth_cli.settings.resizing import Framing, Resizing
from nullbooth_cli.training import setup
from nullbooth_cli.training.before_loading import read_inputs
from nullbooth_cli.training.examples import Batch, EncodedTexts, Examples, encode_pictures
from tests.support import tiny
from tests.support.phone_pictures import write_phone_pictures
from tests.support.pictures import picture
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe


def test_class_pictures_are_those_that_the_model_draws(tmp_path: Path) -> None:
    made = recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=3, validation_inference_steps=5)
    first, again = (setup.set_up(made, "cpu").prior for _ in range(2))
    assert [latents.shape for latents in first.latents] == [(8, 8, 8)] * 3
    assert torch.equal(torch.stack(first.latents), torch.stack(again.latents))
    assert list(first.captions) == [CLASS_PROMPTS[0], CLASS_PROMPTS[1], CLASS_PROMPTS[0]]
    smaller = setup.set_up(made.model_copy(update={"resolution": 16}), "cpu").prior
    assert [latents.shape for latents in smaller.latents] == [(8, 4, 4)] * 3


def test_repeats_are_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = in_buckets([(4, 4)] * 3, [1, 0, 3]).batch(generator, 4000)
    counts = torch.bincount(numbers(batch), minlength=3).tolist()
    assert counts[1] == 0
    assert counts[2] == pytest.approx(3000, abs=100)
    alike = [in_buckets([(4, 4)] * 3, repeats).batch(torch.Generator().manual_seed(0), 9) for repeats in ((), (1, 1, 1))]
    assert torch.equal(numbers(alike[0]), numbers(alike[1]))


def test_folders_with_numbers_are_repeated(tmp_path: Path) -> None:
    for seed, folder in enumerate(("2_a sks circle", "5_a sks star")):
        (tmp_path / folder).mkdir()
        picture(seed).save(tmp_path / folder / "x.png")
    subject = setup.set_up(recipe(tmp_path / "out", instance_images=str(tmp_path)), "cpu").subject
    assert (subject.captions, subject.repeats) == (["a sks circle", "a sks star"], [2, 5])


def in_buckets(shapes: Sequence[tuple[int, int]], repeats: Sequence[int]) -> Examples:
    """Latents of these shapes, each filled with its number, which is its caption."""
    latents = [torch.full((1, *shape), float(i)) for i, shape in enumerate(shapes)]
    framings = [Framing(size=(8 * w, 8 * h), original=(90, 60)) for h, w in shapes]
    return Examples(latents=latents, captions=[str(i) for i in range(len(shapes))], framings=framings, repeats=repeats)


def numbers(batch: Batch) -> torch.Tensor:
    """The numbers of the pictures of a batch; each has its own caption."""
    found = batch.latents[:, 0, 0, 0].long()
    assert [str(number) for number in found.tolist()] == batch.captions
    return found


def test_a_batch_has_pictures_of_one_bucket(tmp_path: Path) -> None:
    examples = in_buckets([(4, 4), (2, 8), (4, 4), (8, 2), (2, 8)], ())
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        batch = examples.batch(generator, 6)
        assert len(numbers(batch)) == 6
        seen.add(batch.latents.shape[2:])
        assert {each.size for each in batch.framings} == {(8 * batch.latents.shape[3], 8 * batch.latents.shape[2])}
    assert seen == {(4, 4), (2, 8), (8, 2)}


@pytest.mark.parametrize("repeats", [(), (1, 3, 1, 2, 1)])
def test_in_buckets_every_picture_is_drawn_as_often_as_it_weighs(repeats: tuple[int, ...]) -> None:
    """Over 4000 batches of 5; pictures of a batch are drawn together, so the deviation is that of 4000 draws."""
    examples, generator = in_buckets([(4, 4), (2, 8), (4, 4), (4, 4), (2, 8)], repeats), torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts += torch.bincount(numbers(examples.batch(generator, 5)), minlength=5)
    expected = torch.tensor(repeats or (1.0,) * 5) / sum(repeats or (1,) * 5)
    assert torch.allclose(counts / counts.sum(), expected, atol=4 * (0.25 / 4000) ** 0.5)


def test_pictures_of_one_size_are_drawn_as_without_buckets() -> None:
    """The numbers that decided a run before there were buckets."""
    examples = in_buckets([(4, 4)] * 3, [2, 1, 4])
    found = numbers(examples.batch(torch.Generator().manual_seed(5), 8))
    places = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    assert torch.equal(found, places[torch.randint(7, (8,), generator=torch.Generator().manual_seed(5))])


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
        found[how] = torch.stack(encode_pictures(pipe, paths, inputs.resizing)[0])
    assert found["crop"].shape == (10, 8, 8, 8)
    assert torch.equal(found["crop"], found["none"])
    images = [Image.open(path) for path in sorted(ready.iterdir(), key=lambda path: path.stem)]
    assert torch.equal(found["none"], encode_images(pipe, images, pipe.device))


def received(pipe: Any, caption: str, **settings: Any) -> dict[str, Any]:
    """What the denoiser receives in a call of a pipeline."""
    found: dict[str, Any] = {}
    handle = pipe.unet.register_forward_pre_hook(lambda _, __, given: found.update(given), with_kwargs=True)
    pipe([caption], guidance_scale=1.0, num_inference_steps=1, output_type="latent", **settings)
    handle.remove()
    return found


@pytest.mark.parametrize("how", ["crop", "letterbox", "buckets"])
def test_stable_diffusion_xl_is_told_what_was_done_to_each_picture(tmp_path: Path, how: Any) -> None:
    """As its own pipeline tells it, called with the sizes of each picture."""
    pipe, resizing = freeze(tiny.sdxl()), Resizing(how=how, size=(32, 16), step=8)
    sizes, captions = [(64, 32), (100, 32), (32, 70)], ["a", "b", "a"]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, size in enumerate(sizes):
        picture(number, *size).save(paths[number])
    latents, framings = encode_pictures(pipe, paths, resizing)
    texts = EncodedTexts.of(pipe, captions, {each.size for each in framings}, 1.0, together=1)
    for number, (width, height) in enumerate(sizes):
        size, scale = framings[number].size, max(new / old for new, old in zip(framings[number].size, sizes[number], strict=True))
        over = (round((width * scale - size[0]) / 2), round((height * scale - size[1]) / 2))
        expected = received(
            pipe,
            captions[number],
            width=size[0],
            height=size[1],
            original_size=(height, width),
            crops_coords_top_left=(0, 0) if how == "letterbox" else over[::-1],
            target_size=size[::-1],
        )
        batch = Batch(
            latents=latents[number][None], captions=captions[number : number + 1], framings=framings[number : number + 1]
        )
        given = batch.conditioning(texts).arguments()
        assert torch.equal(given["added_cond_kwargs"]["time_ids"], expected["added_cond_kwargs"]["time_ids"])
        torch.testing.assert_close(given["encoder_hidden_states"], expected["encoder_hidden_states"])
        assert latents[number].shape == (4, size[1] // 2, size[0] // 2)
