"""Strict reading: unknown keys, wrong types, overrides, and the hints of validators."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.schema import Section, refusal, validate


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: toy\nstore: [")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2"):
        load_config(tmp_path / "c.yaml")


def test_an_unknown_key_is_refused_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'schedule\.num_denoising_step'") as caught:
        build_config({"schedule": {"num_denoising_step": 3}})
    assert caught.value.hint == "did you mean 'num_denoising_steps'?"


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"modle": "toy", "schedule": {"num_denoising_steps": "30"}, "collect": {"side": "left"}})
    for part in ("unknown key 'modle'", "schedule.num_denoising_steps", "collect.side"):
        assert part in caught.value.message
    assert "did you mean 'model'?" in caught.value.hint
    assert "without quotes" in caught.value.hint


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
