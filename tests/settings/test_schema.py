"""Strict reading: unknown keys, wrong types, overrides, and the hints of validators."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import CONFIG, RECIPE, Section, load_settings, refusal, validate


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: toy\nstore: [")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2"):
        load_config(tmp_path / "c.yaml")


def test_an_unknown_key_is_refused_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'schedule\.num_denoising_step'") as caught:
        build_config({"schedule": {"num_denoising_step": 3}})
    assert caught.value.hint == "did you mean 'schedule.num_denoising_steps' for 'schedule.num_denoising_step'?"


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"modle": "toy", "schedule": {"num_denoising_steps": "30"}, "collect": {"side": "left"}})
    for part in ("unknown key 'modle'", "schedule.num_denoising_steps", "collect.side"):
        assert part in caught.value.message
    assert "did you mean 'model' for 'modle'?" in caught.value.hint
    assert "without quotes" in caught.value.hint
    assert "side: input (for projectors) or output (for analysis only)" in caught.value.hint


@pytest.mark.parametrize("value", ["'1e-5'", "abc", "[1]", "true"])
def test_a_number_must_be_one(value: str) -> None:
    with pytest.raises(ConfigError, match=r"project\.relative_threshold"):
        build_config({}, [f"project.relative_threshold={value}"])
    assert build_config({}, ["project.relative_threshold=1e-5"]).project.relative_threshold == 1e-5


def test_overrides_reach_any_key_and_unknown_ones_are_refused() -> None:
    config = build_config({}, ["collect.collect_features.q_features=false", "model=./x", "schedule.sampler_strategy=DPM++ 2M"])
    assert config.collect.collect_features.chosen() == ("k", "v", "out")
    assert (config.model, config.schedule.sampler_strategy) == ("./x", "DPM++ 2M")
    with pytest.raises(ConfigError, match="has no '='"):
        build_config({}, ["model"])
    with pytest.raises(ConfigError, match="'model' is not a section"):
        build_config({"model": "toy"}, ["model.x=1"])


class Pair(Section):
    """Two numbers that must differ."""

    one: int = 1
    other: int = 2

    @model_validator(mode="after")
    def _differ(self) -> "Pair":
        if self.one == self.other:
            raise refusal(f"one and other are both {{{self.one}}}", "set {hint} to another number")
        return self


def test_the_hint_of_a_validator_is_the_hint_of_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Pair, {}, ["one=2"], "c.yaml")
    assert caught.value.message == "c.yaml: one and other are both {2}"
    assert caught.value.hint == "set {hint} to another number"


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_overrides_win_in_their_order(first: int, last: int) -> None:
    given_last = validate(Pair, {"one": 99, "other": 100}, [f"one={first}", f"one={last}"])
    assert given_last == Pair(one=last, other=100)


def test_a_file_without_keys(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"c\.yaml has a list instead of keys and values"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*c\.yaml") as caught:
        load_config(tmp_path / "c.yaml")
    assert "UTF-8" in caught.value.hint
    with pytest.raises(ConfigError, match=r"^no file at .*d\.yaml") as caught:
        load_config(tmp_path / "d.yaml")
    assert caught.value.hint == "name a file that exists"
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == Config()


def test_a_recipe_and_a_config_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: toy\nstore: a\noutput: b\nlearning_rate: 1e-3\nseed: 1\n")
    (tmp_path / "config.yaml").write_text("model: toy\nstore: a\nschedule: {num_denoising_steps: 3}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is a recipe of a training run, not a config of the pipeline$") as caught:
        load_config(tmp_path / "recipe.yaml")
    assert caught.value.hint == "give it to train; here give a config of the pipeline, such as init writes"
    with pytest.raises(ConfigError, match=r"config\.yaml is a config of the pipeline, not a recipe of a training run$") as caught:
        load_settings(Recipe, tmp_path / "config.yaml")
    assert caught.value.hint == "give it to run, or to a stage; here give a recipe of a training run, such as init writes"
    with pytest.raises(ConfigError, match="unknown key 'output'"):
        build_config({"output": "x", "schedule": {}, "collect": {}})


def test_the_keys_that_tell_them_apart_are_keys_of_one_kind() -> None:
    for kind, own, other in ((Config, CONFIG, RECIPE), (Recipe, RECIPE, CONFIG)):
        assert own.keys <= set(kind.model_fields)
        assert not other.keys & set(kind.model_fields)


def test_the_first_of_many_problems_are_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({f"k{i}": i for i in range(20_000)})
    assert caught.value.message.endswith("unknown key 'k9'\n  and 19990 more")
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {1, 2}}, "c.yaml: model: a value of the type set"),
        ({"collect": {"seed": 2**70}}, "collect.seed: an integer of more than 64 bits"),
        ({"model": "a\0"}, r"model: 'a\x00' has a NUL character"),
        ({"heldout_prompts": ["a\ud800"]}, "heldout_prompts: 'a\\ud800' has half a surrogate pair"),
        ({"collect": {"guidance_scale": float("inf")}}, "collect.guidance_scale: input should be a finite number, got inf"),
        ({"collect": {"height": 65_537}}, "collect.height: input should be less than or equal to 65536"),
        ({"schedule": {"num_denoising_steps": 10**9}}, "schedule.num_denoising_steps: input should be less than"),
        ({"collect": {"seed": 2**32}}, "collect.seed: input should be less than"),
    ],
)
def test_values_that_nothing_could_use(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(data, source="c.yaml")
    assert message in caught.value.message


def test_nesting_has_an_end() -> None:
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="nested more than 50 levels deep"):
        build_config({"storage_options": deep})
    with pytest.raises(ConfigError, match="more than 50 levels"):
        build_config({}, ["a." * 100 + "b=1"])


def test_a_path_may_be_given_as_one(tmp_path: Path) -> None:
    assert build_config({"store": tmp_path / "a.zarr"}).store == str(tmp_path / "a.zarr")
