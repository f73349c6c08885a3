"""YAML 1.2: what scalars mean, and repeated keys."""

import itertools
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


BOMB = "- &a [x, x]\n" + "".join(f"- &{b} [{f'*{a}, ' * 9}]\n" for a, b in itertools.pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!binary aGk=", "line 1: the tag !!binary does not fit this value"),
        ("a: !!set {b, c}", "the tag !!set"),
        ("a: 1\nb: !!timestamp 2020-01-01", "line 2: the tag !!timestamp"),
        ("a: !!int x", "the tag !!int"),
        ("a: !!bool maybe", "the tag !!bool"),
        ("a: !!null x", "the tag !!null"),
        ("a: !!python/name:os.system", "its tag does not fit this value"),
        ("a: &a [*a]", "line 1: an alias is inside what it stands for"),
        ("a: *b", "found undefined alias"),
        ("a: &x [1]\nb: &x [2]", "line 2: an anchor is defined a second time"),
        ("[a]: b", "a list or a mapping is used as a key"),
        ("1: a\n'1': b", "line 2: the key '1' appears twice"),
        ("[" * 51 + "]" * 51, "nested more than 50 levels deep"),
        ("{a: " * 60_000, "nested more than 50 levels deep"),
        ("a: " + "9" * 20, "an integer of more than 19 digits"),
        ('a: "x\\0"', "line 1: a text has a NUL character"),
        ('a: "x\\ud800"', "line 1: a text has half a surrogate pair"),
        ("a: b\nc: \x1b", "line 2: the character 0x1b is not allowed"),
        (
            "- &a [x, x]\n" + "".join(f"- &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
            "expand to more than",
        ),
        ("- &a " + "x" * 100_000 + "\n- [" + "*a, " * 200 + "]", "expand to more than"),
    ],
)
def test_what_could_not_be_meant_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "c.yaml")
    assert caught.value.message.startswith("c.yaml, line ")


def test_aliases_and_core_tags_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: !!str 1\nd: !!float 1\ne: {null: 1, 2: 3}", "test") == {
        **{"a": [1, 2], "b": [1, 2], "c": "1", "d": 1.0},
        "e": {"null": 1, "2": 3},
    }
    assert parse_yaml("[" * 50 + "]" * 50, "test") is not None
    assert parse_yaml('"\\ud83d\\ude00"', "test") == "\U0001f600", "as in JSON"


def test_many_keys_are_read_in_a_time_that_grows_with_their_number() -> None:
    assert len(parse_yaml("\n".join(f"k{i}: {i}" for i in range(20_000)), "test")) == 20_000  # type: ignore[arg-type]
