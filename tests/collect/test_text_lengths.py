"""Texts that are as long as their prompts: found by looking, with the longest prompts, and with padding that no mask shows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nullbooth_cli.collect.text_lengths import has_ragged_text, longest, need_to_run_alone
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.settings.config import Config
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


def is_ragged(pipe: Any, **changes: Any) -> bool:
    projections = find_projections(denoiser_of(pipe), ("q",), "all")
    return has_ragged_text(pipe, replace(PATH, **changes), projections, None)


def test_texts_that_are_as_long_as_their_prompts(qwen: Any) -> None:
    assert is_ragged(qwen)
    assert not is_ragged(load.freeze(tiny.sd1()))


def test_texts_that_are_cut_by_their_masks_inside_of_the_denoiser() -> None:
    """Lumina 2 is given 256 tokens of every prompt; PixArt's mask hides tokens and leaves them where they are."""
    assert is_ragged(load.freeze(gemma_family.lumina2()), guidance_scale=4.0)
    assert not is_ragged(load.freeze(tiny.pixart()), height=256, width=256)


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


def test_padding_that_a_mask_shows_needs_no_prompt_alone(qwen: Any) -> None:
    assert not need_to_run_alone(qwen, PATH, find_projections(denoiser_of(qwen), ("q", "out"), "all"), None)


def test_padding_that_no_mask_shows_needs_every_prompt_alone(without_mask: Any) -> None:
    assert need_to_run_alone(without_mask, PATH, find_projections(denoiser_of(without_mask), ("q", "out"), "all"), None)


class TestAlone:
    def config(self, folder: Path, **changes: Any) -> Config:
        if not (folder / "model").exists():
            tiny.qwen_image().save_pretrained(folder / "model")
        texts = [prompt.text for prompt in PROMPTS]
        settings = {"collect__height": 32, "collect__width": 32, "schedule__num_denoising_steps": 2, **changes}
        return small_config(
            folder / f"{changes.get('collect__batch_size', 3)}.zarr",
            model=str(folder / "model"),
            original_knowledge_prompts=texts,
            schedule__sampler_strategy="model",
            **settings,
        )

    def test_moments_do_not_depend_on_the_batch(self, without_mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_loaded(without_mask, monkeypatch)
        one, other = (
            execute(self.config(tmp_path, collect__batch_size=size, collect__keep="moments"), "collect", "covariance")
            for size in (1, 3)
        )
        for site in one.sites:
            for t in range(2):
                expected, found = one.moments.read_one(site, t), other.moments.read_one(site, t)
                assert found.count == expected.count
                assert abs(found.sum_xxt - expected.sum_xxt).max() <= 1e-5 * abs(expected.sum_xxt).max()

    def test_features_want_one_prompt_a_batch(self, without_mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_loaded(without_mask, monkeypatch)
        with pytest.raises(ConfigError, match="batch_size is 3, and QwenImagePipeline lets a prompt attend to") as caught:
            execute(self.config(tmp_path, collect__keep="both"), "schedule", "collect")
        assert caught.value.hint == "set collect.batch_size to 1, or collect.keep to moments"
