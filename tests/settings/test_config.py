import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.strict_yaml import parse_yaml
from tests.support.builders import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.0e-3", 1e-3),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("1e-5x", "1e-5x"),
        ("'1'", "1"),
    ],
)
def test_yaml_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(text, "test")
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_yaml(value: float) -> None:
    assert parse_yaml(repr(value), "test") == value


def test_a_key_stands_once() -> None:
    with pytest.raises(ConfigError, match="the key 'a' appears twice"):
        parse_yaml("a: 1\nb: 2\na: 3", "test")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: toy\nstore: [")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2"):
        load_config(tmp_path / "c.yaml")


def test_the_shipped_config_states_every_key_and_changes_two() -> None:
    path = ROOT / "configs" / "nullbooth.yaml"
    assert load_config(path, ["collect.batch_size=8", "heldout_prompts=null"]) == Config()
    assert _keys(yaml.safe_load(path.read_text())) == _keys(Config().model_dump())


def _keys(data: Any, prefix: str = "") -> set[str]:
    if not isinstance(data, dict):
        return {prefix}
    return set().union(*(_keys(value, f"{prefix}.{key}") for key, value in data.items()))


def test_an_unknown_key_is_refused_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'schedule\.num_denoising_step'") as caught:
        build_config({"schedule": {"num_denoising_step": 3}})
    assert caught.value.hint == "did you mean 'num_denoising_steps'?"


def test_all_problems_are_told_at_once() -> None:
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


@pytest.mark.parametrize("steps", ["0", "-1", "1.5"])
def test_impossible_step_counts(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.num_denoising_steps"):
        build_config({}, [f"schedule.num_denoising_steps={steps}"])


class TestThresholdRules:
    def test_the_default_gives_way(self) -> None:
        assert Config().project.rule() == ("relative_threshold", 1e-3)
        assert build_config({"project": {"energy": 0.9}}).project.rule() == ("energy", 0.9)

    def test_two_rules(self) -> None:
        with pytest.raises(ConfigError, match="more than one threshold rule is set: energy, null_dim"):
            build_config({"project": {"energy": 0.9, "null_dim": 3}})
        with pytest.raises(ConfigError, match="more than one threshold rule is set: energy, relative_threshold"):
            build_config({"project": {"energy": 0.9, "relative_threshold": 0.1}})

    def test_no_rule(self) -> None:
        with pytest.raises(ConfigError, match="no threshold rule is set"):
            build_config({"project": {"relative_threshold": None}})

    def test_the_percentile_wins_over_the_absolute_threshold(self) -> None:
        config = build_config({"project": {"nullspace_threshold": 0.01, "threshold_percent": 40}})
        assert config.project.rule() == ("threshold_percent", 40)


def test_set_reaches_any_key_and_says_what_it_does_not_know() -> None:
    config = build_config({}, ["collect.collect_features.q_features=false", "model=./x", "schedule.sampler_strategy=DPM++ 2M"])
    assert config.collect.collect_features.chosen() == ("k", "v", "out")
    assert (config.model, config.schedule.sampler_strategy) == ("./x", "DPM++ 2M")
    with pytest.raises(ConfigError, match="has no '='"):
        build_config({}, ["model"])
    with pytest.raises(ConfigError, match="'model' is not a section"):
        build_config({"model": "toy"}, ["model.x=1"])


def test_a_config_survives_the_store() -> None:
    config = build_config({}, ["collect.cross_attention_layers=[mid*, 3]", "project.null_dim=4"])
    assert build_config(json.loads(json.dumps(config.model_dump()))) == config
