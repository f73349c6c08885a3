"""Settings as commented YAML: every key, and what is written reads back."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from nullbooth_cli.settings.commented import WIDTH, commented_yaml, fields, scalar
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings, validate
from nullbooth_cli.settings.strict_yaml import parse_yaml
from nullbooth_cli.settings.texts import flaw


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1.0e-05"),
        (0.00123, "0.00123"),
        (7.5, "7.5"),
        (True, "true"),
        (None, "null"),
        ("no", "no"),
        ("null", '"null"'),
        ("prompts/toy.txt", "prompts/toy.txt"),
        ("nullbooth:toy.txt", "nullbooth:toy.txt"),
        ("DPM++ 2M", '"DPM++ 2M"'),
        ("1e5", '"1e5"'),
        ("a: b", '"a: b"'),
        ("~", '"~"'),
        (["k", "v"], "[k, v]"),
        (["a, b", "c"], '["a, b", c]'),
        ({}, "{}"),
    ],
)
def test_a_value_is_written_as_people_write_it(value: Any, text: str) -> None:
    assert scalar(value) == text
    assert parse_yaml(text, "") == value


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.one_of(st.text(max_size=300), st.lists(st.text(max_size=20), max_size=3), NUMBERS))
def test_any_value_reads_back(value: Any) -> None:
    if not any(flaw(text) for text in ([value] if isinstance(value, str) else value if isinstance(value, list) else [])):
        assert parse_yaml(f"key: {scalar(value)}", "") == {"key": value}


def test_a_config_reads_back_with_a_comment_for_every_key(tmp_path: Path) -> None:
    config = build_config(
        {
            "model": "my models/it's: #1",
            "original_knowledge_prompts": ["a dog, running", "no"],
            "collect": {"cross_attention_layers": ["mid", 0], "guidance_scale": 0.001},
            "project": {"timesteps": [200, 600], "null_dim": 4},
        }
    )
    text = commented_yaml(config)
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml") == config
    assert max(map(len, text.splitlines())) <= WIDTH
    folded = " ".join(re.sub("^ *#", "", line).strip() for line in text.splitlines())
    keys = re.findall(r"^ *(\w+):", text, re.MULTILINE)

    def check(settings: BaseModel) -> None:
        for name, value, description in fields(settings):
            assert keys.pop(0) == name
            assert description in folded
            if isinstance(value, BaseModel):
                check(value)

    check(config)
    assert keys == []


def test_a_recipe_reads_back(tmp_path: Path) -> None:
    recipe = validate(Recipe, {"learning_rate": 2e-5, "validation_prompts": ["a dog", "a: b"], "instance_prompt": "a sks dog"})
    (tmp_path / "r.yaml").write_text(commented_yaml(recipe))
    assert load_settings(Recipe, tmp_path / "r.yaml") == recipe


def test_every_key_has_a_description() -> None:
    assert not [name for kind in (Config(), Recipe()) for name, _, description in fields(kind) if not description]
