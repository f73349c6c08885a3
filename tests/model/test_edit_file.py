"""What the record of an edit says: which prompts have which targets now."""

import json
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.edit_file import edited_pairs, pairs_of


def edited(folder: Path, **record: Any) -> str:
    folder.mkdir()
    (folder / "edit.json").write_text(json.dumps(record))
    return str(folder)


def test_the_pairs_of_a_folder(tmp_path: Path) -> None:
    place = edited(tmp_path / "a", pairs={"a [sks] star": "a red star", "circle": "", "doctor": ["male doctor", "female doctor"]})
    assert edited_pairs(place) == {
        "a sks star": ("a red star",),
        "circle": ("",),
        "doctor": ("male doctor", "female doctor"),
    }
    assert edited_pairs(str(tmp_path)) is None
    assert edited_pairs("owner/name") is None


def test_edits_of_an_edited_model_add_up_and_the_later_target_counts(tmp_path: Path) -> None:
    first = edited(tmp_path / "first", pairs={"one": "a", "two": "b"}, after=None)
    second = edited(tmp_path / "second", pairs={"two": "c", "three": "d"}, after=first)
    assert edited_pairs(second) == {"one": ("a",), "two": ("c",), "three": ("d",)}
    of_a_run = edited(tmp_path / "third", pairs={"four": "e"}, after=str(tmp_path))
    assert edited_pairs(of_a_run) == {"four": ("e",)}


@pytest.mark.parametrize("record", [{}, {"pairs": ["a", "b"]}], ids=["no pairs", "a list"])
def test_a_record_without_pairs(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"edit\.json has no pairs of prompts"):
        edited_pairs(edited(tmp_path / "a", **record))


@pytest.mark.parametrize("pairs", [{"a": 1}, {"a": []}, {"a": ["b", 2]}, {" ": "b"}, {"[]": "b"}])
def test_what_is_no_pair(pairs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"the edit maps .* not a prompt to prompts"):
        pairs_of(pairs, "the edit")


def test_a_prompt_is_not_its_own_target() -> None:
    with pytest.raises(ConfigError, match="maps 'a b' to itself"):
        pairs_of({"a b": ["c", "a [b]"]}, "the edit")


def test_edits_that_name_each_other_are_refused(tmp_path: Path) -> None:
    first = edited(tmp_path / "first", pairs={"one": "a"}, after=str(tmp_path / "second"))
    second = edited(tmp_path / "second", pairs={"two": "b"}, after=first)
    with pytest.raises(ConfigError, match=r"second was edited after itself, by its edit\.json"):
        edited_pairs(second)
