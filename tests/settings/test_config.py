"""The schema of the config: the shipped file, threshold rules, keys that do not fit together."""

import json
from typing import Any

import pytest
import yaml

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from tests.support.builders import ROOT


def test_the_shipped_config_states_every_key_and_changes_two() -> None:
    path = ROOT / "configs" / "nullbooth.yaml"
    assert load_config(path, ["collect.batch_size=8", "heldout_prompts=null"]) == Config()
    assert _keys(yaml.safe_load(path.read_text())) == _keys(Config().model_dump())


def _keys(data: Any, prefix: str = "") -> set[str]:
    if not isinstance(data, dict):
        return {prefix}
    return set().union(*(_keys(value, f"{prefix}.{key}") for key, value in data.items()))


@pytest.mark.parametrize("steps", ["0", "-1", "1.5"])
def test_impossible_step_counts(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.num_denoising_steps"):
        build_config({}, [f"schedule.num_denoising_steps={steps}"])


class TestThresholdRules:
    def test_the_default_gives_way(self) -> None:
        assert Config().project.rule() == ("relative_threshold", 1e-3)
        assert build_config({"project": {"energy": 0.9}}).project.rule() == ("energy", 0.9)

    @pytest.mark.parametrize("value", [1e-3, 0.1])
    def test_the_value_of_the_default_counts_when_it_is_written_down(self, value: float) -> None:
        with pytest.raises(ConfigError, match="more than one threshold rule is set: energy, relative_threshold"):
            build_config({"project": {"energy": 0.9, "relative_threshold": value}})

    @pytest.mark.parametrize("value", ["1e-3", "0.1"])
    @pytest.mark.parametrize(
        "rules", [{}, {"energy": 0.9}, {"nullspace_threshold": 0.1, "threshold_percent": 40}, {"null_dim": 4}]
    )
    def test_an_override_takes_the_place_of_every_rule(self, rules: dict[str, float], value: str) -> None:
        """Over what a user wrote, and over what a store has."""
        for data in ({"project": rules}, build_config({"project": rules}).model_dump()):
            assert build_config(data, [f"project.relative_threshold={value}"]).project.rule() == (
                "relative_threshold",
                float(value),
            )
            assert build_config(data, ["project.null_dim=7"]).project.rule() == ("null_dim", 7)

    def test_of_overrides_too_only_one_is_a_rule(self) -> None:
        with pytest.raises(ConfigError, match="more than one threshold rule is set: energy, null_dim"):
            build_config({}, ["project.null_dim=7", "project.energy=0.9"])
        both = build_config({"project": {"energy": 0.9}}, ["project.nullspace_threshold=1", "project.threshold_percent=40"])
        assert both.project.rule() == ("threshold_percent", 40)

    def test_an_override_with_nothing_leaves_the_other_rules(self) -> None:
        data = {"project": {"energy": 0.9, "null_dim": 3}}
        assert build_config(data, ["project.null_dim=null"]).project.rule() == ("energy", 0.9)

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


def test_a_config_survives_the_store() -> None:
    config = build_config({}, ["collect.cross_attention_layers=[mid*, 3]", "project.null_dim=4"])
    assert build_config(json.loads(json.dumps(config.model_dump()))) == config


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"collect": {"latents": "images"}}, "collect: latents is images, but images names no folder", "set collect.images"),
        (
            {"collect": {"images": "photos"}},
            "collect: images names a folder, but latents is path",
            "collect.latents to images",
        ),
        (
            {"collect": {"latents": "images", "images": "photos"}, "heldout_prompts": ["x"]},
            "c.yaml: collect.latents is images, and heldout_prompts have no images",
            "compare the two stores",
        ),
    ],
    ids=["no folder", "no need of it", "held-out prompts"],
)
def test_settings_that_do_not_fit(data: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(data, source="c.yaml")
    assert hint in caught.value.hint
