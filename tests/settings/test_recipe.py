"""Recipes: the shipped ones are valid, and contradictions are refused."""

from pathlib import Path

import pytest

from nullbooth_cli.settings import captions
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from tests.support.builders import ROOT


def test_a_feature_named_twice() -> None:
    with pytest.raises(ValueError, match=r"features is \['k', 'k'\]"):
        Recipe(features=["k", "k"])


def test_a_lora_has_no_place_for_a_word() -> None:
    with pytest.raises(ValueError, match="a LoRA file cannot store the embedding of a word"):
        Recipe(method="lora", word="sks")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    made = load_settings(Recipe, path)
    assert made.store == {"toy": "runs/words.zarr", "sd15": "runs/sd15-words.zarr"}[path.stem]
    if path.stem == "toy":
        assert len(captions.load_captions(str(ROOT / made.instance_images))) == 20
