"""What a batch changes: texts that are as long as their prompts, padding that no mask shows, and noise that one prompt draws for
another. All of it is found by looking."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from nullbooth_cli.collect import batching
from nullbooth_cli.collect.batching import Batching, find_batching, longest
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model import load, pipeline_classes
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import find_projections
from tests.support import tiny
from tests.support.builders import execute, small_config
from tests.support.loading import use_loaded
from tests.support.zoo import gemma_family

PATH = DenoisingPath(num_inference_steps=2, steps=(), guidance_scale=1.0, height=32, width=32, seed=0)
PROMPTS = tuple(map(Prompt, ("a cat", "a dog with a hat", "a dog with a bat", "a bird")))


@pytest.fixture(scope="module")
def qwen() -> Any:
    torch.manual_seed(0)
    return load.freeze(tiny.qwen_image())


@pytest.fixture
def without_mask(qwen: Any) -> Iterator[Any]:
    """As CogView4: its text is as long as the longest of a batch, and attention is given no mask."""

    def drop(_: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return inputs, {**named, "encoder_hidden_states_mask": None}

    handle = qwen.transformer.register_forward_pre_hook(drop, with_kwargs=True)
    yield qwen
    handle.remove()


def batching_of(pipe: Any, **changes: Any) -> Batching:
    features = ("q", "k", "v", "out")
    return find_batching(pipe, replace(PATH, **changes), find_projections(denoiser_of(pipe), features, "all"), None)


def test_texts_that_are_as_long_as_their_prompts(qwen: Any) -> None:
    assert batching_of(qwen) == Batching(is_ragged=True, alone=False)


@pytest.mark.parametrize(("make", "is_ragged"), [(tiny.qwen_image, True), (tiny.sd1, False)])
def test_a_class_that_takes_one_prompt_is_given_one(make: Any, is_ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load.freeze(make())
    monkeypatch.setattr(pipeline_classes, "_ONE_PROMPT", type(pipe).__name__)
    assert batching_of(pipe) == Batching(is_ragged=is_ragged, alone=True)


@pytest.mark.parametrize("make", [tiny.sd1, tiny.flux, tiny.pixart])
def test_texts_of_one_length(make: Any) -> None:
    """With a mask (PixArt) and without."""
    size = 256 if make is tiny.pixart else 16
    assert batching_of(load.freeze(make()), height=size, width=size) == Batching()


def test_texts_that_are_cut_by_their_masks_inside_of_the_denoiser() -> None:
    """Lumina 2 is given 256 tokens of every prompt, and joins those that are no padding with the image."""
    pipe = load.freeze(gemma_family.lumina2())
    assert batching_of(pipe, guidance_scale=4.0) == Batching(is_ragged=True, alone=False)


def test_padding_that_no_mask_shows(without_mask: Any) -> None:
    assert batching_of(without_mask) == Batching(is_ragged=True, alone=True)


def test_noise_that_one_prompt_of_a_batch_draws_for_all() -> None:
    """The sample of an encoded image takes the first generator, so that only the first prompt's noise comes after it."""
    made = diffusers.FluxImg2ImgPipeline(**{name: part for name, part in tiny.flux().components.items() if part is not None})
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8))
    inputs = {"image": [picture], "strength": 1.0}
    found = batching_of(load.freeze(made), height=16, width=16, inputs=inputs)
    assert found == Batching(is_ragged=False, alone=True)


def test_a_pipeline_that_draws_one_prompt_and_not_two(qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of video with the film of one prompt: diffusers ends in whatever error comes first."""

    def one_alone(pipe: Any, path: DenoisingPath, members: Any, **more: Any) -> Any:
        if len(members) > 1:
            raise IndexError("index 1 is out of bounds for dimension 0 with size 1")
        return denoise(pipe, path, members, **more)

    monkeypatch.setattr(batching, "denoise", one_alone)
    assert batching_of(qwen) == Batching(is_ragged=True, alone=True)


def test_the_longest_prompt_is_the_first_of_those_that_are_as_long(qwen: Any) -> None:
    assert longest(qwen, PATH, PROMPTS) == (PROMPTS[1],)
    assert longest(qwen, PATH, PROMPTS[:1]) == PROMPTS[:1]


def test_two_texts_have_a_longest_prompt_each(qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second text that is the longer, the shorter the prompt is."""

    def add(_: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        length = named["encoder_hidden_states"].shape[1]
        return inputs, {**named, "attention_kwargs": {"second": [torch.zeros(1, 1000 - length, 4)]}}

    handle = qwen.transformer.register_forward_pre_hook(add, with_kwargs=True)
    try:
        assert longest(qwen, PATH, PROMPTS) == PROMPTS[:2]
    finally:
        handle.remove()


@pytest.mark.parametrize("keep", ["moments", "both"])
def test_prompts_that_have_to_run_alone_do(without_mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    """Whatever the batch size is; the store says which it was."""
    without_mask.save_pretrained(tmp_path / "model")
    use_loaded(without_mask, monkeypatch)
    one, other = (
        execute(
            small_config(
                tmp_path / f"{size}.zarr",
                model=str(tmp_path / "model"),
                original_knowledge_prompts=[prompt.text for prompt in PROMPTS],
                schedule__sampler_strategy="model",
                schedule__num_denoising_steps=2,
                collect__height=32,
                collect__width=32,
                collect__keep=keep,
                collect__batch_size=size,
            ),
            *("schedule", "collect", "covariance"),
        )
        for size in (1, 3)
    )
    assert other.layout.batch_size == 1
    for site in one.sites:
        for t in range(2):
            expected, found = one.moments.read_one(site, t), other.moments.read_one(site, t)
            assert found.count == expected.count
            assert np.abs(found.sum_xxt - expected.sum_xxt).max() <= 1e-5 * np.abs(expected.sum_xxt).max()
