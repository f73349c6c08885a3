"""Prompts of a class: a file of its own, or templates with its noun."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.class_prompts import article, class_prompts, fill, is_plural, plural
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.shipped import CLASS_TEMPLATES, shipped


def test_a_class_with_a_file_of_its_own_has_that() -> None:
    texts = [prompt.text for prompt in load_prompts("nullbooth:dog_prompts_1000.txt")]
    assert class_prompts("dog") == class_prompts(" Dog\n") == texts


def test_another_class_is_put_into_the_templates() -> None:
    found = class_prompts("wild  owl")
    assert found[:3] == ["a photo of a wild owl", "a double exposure of a wild owl", "a photo of a wild owl on a mountain path"]
    assert len(found) == len(shipped(CLASS_TEMPLATES).read_text().splitlines()) == 151
    assert all("wild owl" in prompt for prompt in found)
    assert len(load_prompts(found)) == 151


@pytest.mark.parametrize(
    ("template", "noun", "prompt"),
    [
        ("a photo of a {}", "cat", "a photo of a cat"),
        ("a photo of a {} and a {}", "owl", "a photo of an owl and an owl"),
        ("a {} in a box", "hour glass", "an hour glass in a box"),
        ("a red {} beside a house", "owl", "a red owl beside a house"),
        ("an ordinary {}", "cat", "an ordinary cat"),
        ("two {}s and a {}", "fox", "two foxes and a fox"),
        ("a row of {}s", "sneakers", "a row of sneakers"),
        ("a photo of a {}", "sneakers", "a photo of sneakers"),
        ("a red {} beside a house", "glasses", "red glasses beside a house"),
        ("an expensive {}", "old boots", "expensive old boots"),
        ("a part of a {}", "boots", "a part of boots"),
    ],
)
def test_filling(template: str, noun: str, prompt: str) -> None:
    assert fill(template, noun) == prompt


def test_articles() -> None:
    for noun in ("owl", "hour", "heirloom", "honest man", "umbrella", "uninvited guest", "SUV", "MRI scanner", "ice cream"):
        assert article(noun) == "an", noun
    for noun in ("cat", "unicorn", "uniform", "ukulele", "European", "one-armed bandit", "house", "UFO", "NASA rocket"):
        assert article(noun) == "a", noun


def test_plurals() -> None:
    pairs = {"cat": "cats", "fox": "foxes", "church": "churches", "puppy": "puppies", "toy": "toys", "wolf": "wolves"}
    pairs |= {"knife": "knives", "roof": "roofs", "woman": "women", "Fireman": "Firemen", "human": "humans", "mouse": "mice"}
    pairs |= {"potato": "potatoes", "piano": "pianos", "sheep": "sheep", "bus": "buses", "glass": "glasses", "person": "people"}
    pairs |= {"bear plushie": "bear plushies", "bowl of berries": "bowls of berries", "wolf in a coat": "wolves in a coat"}
    assert {noun: plural(noun) for noun in pairs} == pairs
    assert not [noun for noun in pairs if is_plural(noun)]
    for noun in ("sneakers", "running shoes", "glasses", "people", "jeans", "flowers in a vase", "women", "cookies"):
        assert is_plural(noun), noun
    for noun in ("bus", "glass", "octopus", "iris", "gas", "lens", "dress", "cactus", "bowl of berries"):
        assert not is_plural(noun), noun


@pytest.mark.parametrize("noun", ["", " \n ", "a" * 61, "{}", "cat\ndog", "cat\0"])
def test_what_is_not_a_noun(noun: str) -> None:
    with pytest.raises(ConfigError, match="is not a noun"):
        class_prompts(noun)


def test_an_article_is_refused() -> None:
    with pytest.raises(ConfigError, match="the class 'a cat' begins with an article") as caught:
        class_prompts("a cat")
    assert caught.value.hint == "name it without: cat"
    assert len(class_prompts("the")) == 151  # a strange noun, but one


@given(st.text(st.characters(categories=("Lu", "Ll", "Lo", "Zs", "Pd")), min_size=1, max_size=60))
def test_any_noun_gives_distinct_prompts_or_is_refused(noun: str) -> None:
    try:
        found = class_prompts(noun)
    except ConfigError:
        return
    assert len(set(found)) == len(found) >= 151
    assert not [prompt for prompt in found if "{" in prompt or "  " in prompt]
