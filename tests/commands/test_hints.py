"""Hints of the library, as the command line prints them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.commands.hints import hint_of
from nullbooth_cli.errors import ConfigError, Rerun, StageError


def test_a_hint_in_words_stays_as_it_is() -> None:
    assert hint_of(ConfigError("wrong", "set collect.images\nto a folder")) == "set collect.images\nto a folder"


@pytest.mark.parametrize(
    ("rerun", "command"),
    [
        (Rerun("collect"), "nullbooth collect"),
        (Rerun("collect", force=True), "nullbooth collect --force"),
        (Rerun("covariance", repair=True, store="runs/a.zarr"), "nullbooth covariance -s runs/a.zarr --repair"),
        (Rerun("project", settings=("project.null_dim=4",)), "nullbooth project --set project.null_dim=4"),
        (Rerun("project", otherwise=", or name another store"), "nullbooth project, or name another store"),
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
