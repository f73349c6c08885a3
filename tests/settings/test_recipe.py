"""Recipes: the shipped ones are valid, and contradictions are refused."""

from pathlib import Path

import pytest

from nullbooth_cli.settings import captions
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from tests.support.builders import ROOT
from tests.support.tiny_dreambooth import recipe


def test_a_feature_named_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names each projection once"):
        recipe(tmp_path, features=["k", "k"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    made = load_settings(Recipe, path)
    assert made.store == {"toy": "runs/words.zarr", "sd15": "runs/sd15-words.zarr"}[path.stem]
    if path.stem == "toy":
        assert len(captions.load_captions(str(ROOT / made.instance_images))) == 20
