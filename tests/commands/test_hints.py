"""Hints of the library, as the command line prints them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.commands.hints import carried_options, hint_of
from nullbooth_cli.errors import ConfigError, Rerun, StageError


def test_a_hint_in_words_stays_as_it_is() -> None:
    assert hint_of(ConfigError("wrong", "set collect.images\nto a folder")) == "set collect.images\nto a folder"


@pytest.mark.parametrize(
    ("rerun", "command"),
    [
        (Rerun("collect"), "nullbooth collect"),
        (Rerun("collect", force=True), "nullbooth collect --force"),
        (Rerun("covariance", repair=True, store="runs/a.zarr"), "nullbooth covariance --repair -s runs/a.zarr"),
        (Rerun("project", settings=("project.null_dim=4",)), "nullbooth project --set project.null_dim=4"),
        (Rerun("project", otherwise=", or name another store"), "nullbooth project\nor name another store"),
    ],
)
def test_a_stage_to_run_is_a_command(rerun: Rerun, command: str) -> None:
    assert hint_of(StageError("wrong", rerun)) == command


@given(
    st.text(st.characters(exclude_categories=("C",)), min_size=1),
    st.lists(st.text(st.characters(exclude_categories=("C",)), min_size=1)),
)
def test_a_shell_reads_the_command_as_it_was_meant(store: str, settings: list[str]) -> None:
    words = shlex.split(hint_of(StageError("wrong", Rerun("collect", store=store, settings=tuple(settings)))))
    assert words == ["nullbooth", "collect", "-s", store, *(word for setting in settings for word in ("--set", setting))]


def test_short_options_may_touch_their_values() -> None:
    assert carried_options(["collect", "-cmy.yaml", "-sruns/a.zarr", "-q"]) == ["-c", "my.yaml", "-s", "runs/a.zarr"]


def test_a_recipe_is_not_given_to_a_stage() -> None:
    options = carried_options(["train", "-c", "recipe.yaml", "--set", "learning_rate=1", "-s", "a.zarr"])
    incomplete = StageError("incomplete", Rerun("project", store="a.zarr"))
    assert hint_of(incomplete, options) == "nullbooth project -s a.zarr"


def test_teach_has_its_config_in_its_output() -> None:
    stale = StageError("made with other settings", Rerun("project", force=True))
    options = carried_options(["teach", "photos", "--set", "rank=3", "-o", "my dog"])
    assert hint_of(stale, options) == "nullbooth project --force -c 'my dog/nullbooth.yaml'"
    assert carried_options(["teach", "--output=out"]) == ["-c", "out/nullbooth.yaml"]
    assert carried_options(["teach"]) == ["-c", "taught/nullbooth.yaml"]


def test_a_command_repeats_the_options_that_name_config_and_store() -> None:
    given = [
        "status",
        "-c",
        "my config.yaml",
        "--set=project.null_dim=4",
        "--store",
        "a.zarr",
        "--json",
        "--set",
        "storage_options.key=s",
    ]
    options = carried_options(given)
    assert options == ["-c", "my config.yaml", "--set", "project.null_dim=4", "-s", "a.zarr"]
    missing = StageError("nothing was collected yet", Rerun("collect"))
    assert hint_of(missing, options) == "nullbooth collect -c 'my config.yaml' --set project.null_dim=4 -s a.zarr"
    damaged = StageError("damaged", Rerun("collect", repair=True, store="b.zarr"))
    assert hint_of(damaged, options) == "nullbooth collect --repair -c 'my config.yaml' --set project.null_dim=4 -s b.zarr"
