"""What the record of an edit says: which prompts have which targets now."""

import json
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.model.edit_file import edit_chain, edit_digest, edited_pairs, pairs_of
from tests.support.trained_folders import training_output


def edited(folder: Path, **record: Any) -> str:
    folder.mkdir()
    (folder / "edit.json").write_text(json.dumps(record))
    return str(folder)


def after(place: str | Path, folder: Path) -> dict[str, Any]:
    """The record of what a folder was edited after."""
    return After.of(str(place), folder, digest=edit_digest(str(place))).document()


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
    second = edited(tmp_path / "second", pairs={"two": "c", "three": "d"}, after=after(first, tmp_path / "second"))
    assert edited_pairs(second) == {"one": ("a",), "two": ("c",), "three": ("d",)}
    of_a_run = edited(tmp_path / "third", pairs={"four": "e"}, after=after(tmp_path, tmp_path / "third"))
    assert edited_pairs(of_a_run) == {"four": ("e",)}
    of_the_hub = edited(tmp_path / "fourth", pairs={"five": "f"}, after=after("owner/name", tmp_path / "fourth"))
    assert list(edit_chain(of_the_hub)) == [of_the_hub, "owner/name"]


def test_a_chain_leads_through_training_runs(tmp_path: Path) -> None:
    dog, cat = (training_output(tmp_path / name, "full", 200, result=False) for name in ("dog", "cat"))
    base = cat / "checkpoint-000200/trained/base.json"
    before = After.of(str(dog), base.parent, digest=None).document()
    base.write_text(json.dumps({**json.loads(base.read_text()), "after": before}))
    edit = edited(tmp_path / "edit", pairs={"one": "a"}, after=after(cat, tmp_path / "edit"))
    assert list(edit_chain(edit)) == [edit, str(cat), str(dog)]


def test_what_was_edited_before_is_found_where_both_were_moved(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    first = edited(tmp_path / "runs/first", pairs={"one": "a"}, after=None, tensors={"k": "1"})
    edited(tmp_path / "runs/second", pairs={"two": "b"}, after=after(first, tmp_path / "runs/second"))
    (tmp_path / "runs").rename(tmp_path / "moved")
    second = str(tmp_path / "moved/second")
    assert edited_pairs(second) == {"one": ("a",), "two": ("b",)}
    record = tmp_path / "moved/first/edit.json"
    record.write_text(json.dumps({"pairs": {"one": "c"}, "tensors": {"k": "2"}}))
    with pytest.raises(ConfigError, match=r"second was edited after .*first, which has changed since") as caught:
        edited_pairs(second)
    assert caught.value.hint == f"put {tmp_path}/moved/first back as it was, or make {second} again"
    record.unlink()
    record.parent.rmdir()
    with pytest.raises(
        ConfigError, match=r"second was edited after .*first, which is gone: only that tells what was edited"
    ) as gone:
        edited_pairs(second)
    assert gone.value.hint == "put it back, or keep both in one folder when you move them"


@pytest.mark.parametrize("written", ["first", ["first"], {"place": "first"}])
def test_a_place_alone_is_no_record_of_what_was_before(tmp_path: Path, written: Any) -> None:
    with pytest.raises(ConfigError, match=r"edit\.json is not the record of an edit"):
        edited_pairs(edited(tmp_path / "a", pairs={"one": "a"}, after=written))


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
    (tmp_path / "second").mkdir()
    first = edited(tmp_path / "first", pairs={"one": "a"}, after=after(tmp_path / "second", tmp_path / "first"))
    (tmp_path / "second").rmdir()
    second = edited(tmp_path / "second", pairs={"two": "b"}, after=after(first, tmp_path / "second"))
    with pytest.raises(ConfigError, match=r"second was edited after itself, by its edit\.json"):
        edited_pairs(second)
