"""Paths as a shell reads them, and what is no path."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.settings.places import expanded
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import validate


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home, and one variable."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("GONE", raising=False)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "/home/me"),
        ("~/runs/a.zarr", "/home/me/runs/a.zarr"),
        ("$DATA/a", "/data/a"),
        ("${DATA}a/$DATA", "/dataa//data"),
        ("runs/~/a", "runs/~/a"),
        ("costs $5", "costs $5"),
        ("a$", "a$"),
        ("${DATA", "${DATA"),
        ("s3://bucket/$GONE/~", "s3://bucket/$GONE/~"),
        ("abfs://container@account/run.zarr", "abfs://container@account/run.zarr"),
        ("owner/name", "owner/name"),
    ],
)
def test_a_path_is_read_as_in_a_shell(written: str, meant: str) -> None:
    assert expanded(written) == meant


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("$GONE/x", "names $GONE, which is not set"),
        ("${GONE}", "names $GONE, which is not set"),
        ("~nobody-of-this-name/x", "a user who is not known"),
        (" ", "the path is empty"),
        ("a\0b", "has a NUL character"),
        ("a\ud800b", "has half a surrogate pair"),
        ("a" * 256, "longer than file systems take (255 bytes in a name"),
        ("é" * 128, "longer than file systems take"),
        ("abc/" * 1025, "longer than file systems take"),
        ("s3://key:WORD@bucket/x", "the s3 URL carries credentials"),
        ("https://WORD@host/x", "the https URL carries credentials"),
    ],
)
def test_what_is_no_path_is_refused(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expanded(written)
    assert message in caught.value.message
    assert "WORD" not in caught.value.message
    assert len(caught.value.message) < 250


@given(st.text(st.characters(exclude_characters="~$\0", exclude_categories=("Cs",)), min_size=1, max_size=60).filter(str.strip))
def test_any_other_path_stays_as_it_is(path: str) -> None:
    if "://" not in path:
        assert expanded(path) == path


@pytest.mark.usefixtures("home")
def test_every_key_with_a_path_is_expanded() -> None:
    config = build_config(
        {
            **dict.fromkeys(("model", "pipeline_config", "store", "original_knowledge_prompts", "heldout_prompts"), "~/x"),
            "collect": {"latents": "path", "images": None},
        }
    )
    assert config.model == config.store == config.original_knowledge_prompts == config.heldout_prompts == "/home/me/x"
    images = build_config({"collect": {"latents": "images", "images": "$DATA/x"}}, ["original_knowledge_prompts=['~', '$GONE']"])
    assert (images.collect.images, images.original_knowledge_prompts) == ("/data/x", ["~", "$GONE"])
    recipe = validate(Recipe, dict.fromkeys(("model", "output", "store", "instance_images", "class_prompts"), "$DATA/x"))
    assert {recipe.model, recipe.output, recipe.store, recipe.instance_images, recipe.class_prompts} == {"/data/x"}
    with pytest.raises(ConfigError, match=r"^overrides: store: the path '\$GONE/x' names \$GONE, which is not set$") as caught:
        build_config({}, ["store=$GONE/x"])
    assert caught.value.hint == "set GONE, or write the path out"


def test_a_place_that_does_not_exist_is_a_path_too(tmp_path: Path) -> None:
    assert expanded(os.fspath(tmp_path / "not there")) == os.fspath(tmp_path / "not there")
