"""What a stage was made from, against what is asked for now."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.pipeline.differences import added_prompts, covered_rows, differing, removed_prompts, wanted_settings
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of, small_config

SETTINGS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))
PROMPTS = st.lists(st.sampled_from([Prompt(text) for text in "abcdef"]), unique=True)


@given(old=SETTINGS, new=SETTINGS)
def test_exactly_the_settings_that_differ_are_named(old: dict[str, int], new: dict[str, int]) -> None:
    found = {difference.field: (difference.old, difference.new) for difference in differing(old, new)}
    names = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    assert found == {name: (old.get(name, "not set"), new.get(name, "not set")) for name in names}


@given(wanted=PROMPTS, there=PROMPTS)
def test_prompts_are_added_removed_or_both_or_neither(wanted: list[Prompt], there: list[Prompt]) -> None:
    store: Any = SimpleNamespace(prompts=lambda: tuple(there))
    added, removed = added_prompts(wanted, store), removed_prompts(wanted, store)
    assert set(there) - set(removed) | set(added) == set(wanted)
    assert not set(added) & set(there)
    assert not set(removed) & set(wanted)


def test_rows_that_were_covered_do_not_change_when_others_come(tmp_path: Path) -> None:
    before, after, filled, other = (
        cast("Store", SimpleNamespace(rows=(Prompt("a"), None, Prompt("b"), *more), layout=SimpleNamespace(batch_size=batch)))
        for more, batch in (([], 2), ([None, Prompt("c")], 2), ([Prompt("c")], 2), ([], 3))
    )
    assert covered_rows(before) == covered_rows(after, 3)
    assert covered_rows(before) != covered_rows(after)
    assert covered_rows(before) != covered_rows(filled, 3), "the unit of the last row has another prompt"
    assert covered_rows(before) != covered_rows(other), "the units are others"


def test_project_depends_on_the_prompts_in_any_order(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr")
    prompts = prompts_of(config)
    assert wanted_settings(config, prompts, "project") == wanted_settings(config, prompts[::-1], "project")
    assert wanted_settings(config, prompts, "project") != wanted_settings(config, prompts[1:], "project")
    assert wanted_settings(config, prompts, "covariance") == wanted_settings(config, prompts[1:], "covariance")
