"""The settings of an edit: what a file may have, and which have a part in a method."""

from typing import Any

import pytest

from nullbooth_cli.editing.settings import EditOptions, EditSettings, GivenSettings, settings_of
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.schema import validate

EVERY = {"method", "tokens", "weights", "ridge", "copies", "seed"}


def test_a_file_may_have_every_setting() -> None:
    assert GivenSettings.model_fields.keys() == EditOptions.__annotations__.keys() == EditSettings.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("method", "own", "weights"),
    [
        ("alphaedit", {}, "kv"),
        ("uce", {"preserve": 100.0}, "kv"),
        ("speed", {"prompts": 200, "noise": 10}, "v"),
        ("ace", {"prompts": 200, "project": 0.16}, "kv"),
    ],
)
def test_settings_are_those_of_the_method(method: str, own: dict[str, float], weights: str) -> None:
    found = settings_of({"method": method, "ridge": 0.5, "preserve": None})
    assert found.keys() == EVERY | own.keys()
    assert found == {**found, **own, "ridge": 0.5, "weights": weights, "tokens": "subject"}
    assert settings_of({"method": method, "weights": "k"})["weights"] == "k"


@pytest.mark.parametrize(
    ("given", "problem", "hint"),
    [
        ({"preserve": 1.0}, "preserve has no part in alphaedit", "leave it out, or choose the method uce"),
        ({"method": "uce", "prompts": 3}, "prompts has no part in uce", "choose the method speed or ace"),
        ({"method": "rome"}, "method='rome' is not a choice", "alphaedit"),
        ({"ridge": 0.0}, "ridge=0.0", "above 0"),
    ],
)
def test_what_has_no_part_is_refused(given: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        settings_of(given)
    assert hint in caught.value.hint


def test_only_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        EditSettings(copies=-1)
    assert (caught.value.message, caught.value.hint) == ("copies=-1", "set copies to a whole number, 0 or more")
    with pytest.raises(ConfigError) as caught:
        EditSettings(preserve=-1.0, project=2.0)
    assert caught.value.message == "preserve=-1.0, project=2.0"
    assert caught.value.hint == "set preserve to a number, 0 or more\nset project to a share above 0, at most 1"


@pytest.mark.parametrize(
    ("given", "problem", "hint"),
    [
        ({"nose": 3}, "x: settings: unknown key 'nose'", "did you mean 'noise'"),
        ({"noise": 2.5}, "x: settings: noise: ", "a whole number, 0 or more"),
        ({"weights": "q"}, "x: settings: weights: ", "kv, k or v"),
    ],
)
def test_a_file_with_wrong_settings(given: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(GivenSettings, given, source="x: settings")
    assert problem in caught.value.message
    assert hint in caught.value.hint
