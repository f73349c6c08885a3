"""The prompts that a config names: preserved, held out, and those with attention maps."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.knowledge import (
    HELDOUT_SEED,
    attention_prompts,
    heldout_config,
    heldout_prompts,
    knowledge_prompts,
    require_disjoint,
)
from tests.support.pictures import photos

TEXTS = ["a dog", "a cat", "a fox"]
PROMPTS = tuple(Prompt(text) for text in TEXTS)


def config_of(**collect: object) -> Config:
    return build_config({"original_knowledge_prompts": TEXTS, "heldout_prompts": ["a bird"], "collect": collect})


def test_prompts_or_captions_of_images(tmp_path: Path) -> None:
    assert knowledge_prompts(config_of()) == PROMPTS
    photos(tmp_path, ["a hen"])
    of_images = build_config({"collect": {"latents": "images", "images": str(tmp_path)}})
    assert [prompt.text for prompt in knowledge_prompts(of_images)] == ["a hen"]


def test_heldout_prompts_may_be_absent() -> None:
    assert heldout_prompts(config_of()) == (Prompt("a bird"),)
    assert heldout_prompts(Config()) == ()


def test_no_prompt_is_both() -> None:
    require_disjoint([Prompt("a bird")], PROMPTS)
    with pytest.raises(ConfigError, match="2 of the held-out prompts are also preserved, such as 'a cat'"):
        require_disjoint([Prompt("a dog"), Prompt("a cat"), Prompt("a bird")], PROMPTS)


def test_the_heldout_store_has_other_noise_and_only_moments() -> None:
    config = config_of(keep="features", seed=5, visual_attention_map=True)
    heldout = heldout_config(config)
    assert heldout.store == f"{config.store}/heldout"
    assert (heldout.original_knowledge_prompts, heldout.heldout_prompts) == (["a bird"], None)
    assert (heldout.collect.keep, heldout.collect.seed) == ("moments", 5 + HELDOUT_SEED)
    assert not heldout.collect.visual_attention_map
    assert heldout.schedule == config.schedule


@given(st.integers(0, 5))
def test_attention_maps_of_the_first_prompts(count: int) -> None:
    assert attention_prompts(config_of(attention_prompts=count), PROMPTS) == list(PROMPTS[:count])


def test_attention_maps_of_named_prompts() -> None:
    twins = [*PROMPTS, Prompt("a dog", image="0" * 16)]
    named = config_of(attention_prompts=["a fox", "a dog", "a fox"])
    assert attention_prompts(named, twins) == [twins[2], twins[0], twins[3]]
    with pytest.raises(ConfigError, match="'a hen' is not one of the 3 prompts that are collected") as caught:
        attention_prompts(config_of(attention_prompts=["a hen"]), PROMPTS)
    assert "original_knowledge_prompts" in caught.value.hint
