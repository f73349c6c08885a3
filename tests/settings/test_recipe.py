"""Recipes: the shipped ones are valid, and contradictions are refused."""

from pathlib import Path
from typing import Any, get_args

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import captions
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.recipe import LearningRates, Recipe
from nullbooth_cli.settings.schema import load_settings, validate
from nullbooth_cli.settings.shipped import shipped
from nullbooth_cli.settings.starter import RECIPES
from tests.support.builders import ROOT


def test_a_feature_named_twice() -> None:
    with pytest.raises(ValueError, match=r"features is \['k', 'k'\]"):
        Recipe(features=["k", "k"])


def test_names_are_chosen_from_a_list_that_the_error_gives() -> None:
    from diffusers.optimization import SchedulerType

    needs_rules = SchedulerType.PIECEWISE_CONSTANT
    assert set(get_args(LearningRates)) == {kind.value for kind in SchedulerType} - {needs_rules.value}
    for key in ("lr_scheduler", "mixed_precision", "method"):
        allowed = get_args(Recipe.model_fields[key].annotation)
        with pytest.raises(ConfigError, match=rf"{key}: input should be .*'{allowed[0]}'.*'{allowed[-1]}', got 'cosin'"):
            validate(Recipe, {key: "cosin"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_warmup_steps": 10}, "lr_scheduler: constant has no warmup"),
        ({"instance_prompt": " "}, "instance_prompt is empty"),
    ],
)
def test_settings_without_a_meaning(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, settings)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    made = load_settings(Recipe, path)
    assert made.store == {"toy": "runs/words.zarr", "sd35": "runs/sd3-words.zarr"}.get(path.stem, f"runs/{path.stem}-words.zarr")
    [name] = {name for name, recipe in RECIPES.items() if recipe == f"train/{path.stem}"} - {"sd14", "sd21"}
    assert made.model == load_config(shipped(name)).model
    if path.stem == "toy":
        assert len(captions.load_captions(made.instance_images)) == 20
