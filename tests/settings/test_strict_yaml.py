"""YAML 1.2: what scalars mean, and repeated keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.strict_yaml import parse_yaml


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


def test_a_repeated_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="the key 'a' appears twice"):
        parse_yaml("a: 1\nb: 2\na: 3", "test")
