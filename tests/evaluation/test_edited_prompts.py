"""The prompts of an edit, and paraphrases that change a prompt and its target alike."""

import json
from pathlib import Path

import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.edited_prompts import TEMPLATES, EditedPrompts, NoEdits, find_edits, replaced

PROMPTS = [Prompt("a red circle on a blue background"), Prompt("two Circles"), Prompt("a star"), Prompt("a photo of circle")]


@pytest.mark.parametrize(
    ("text", "source", "target", "expected"),
    [
        ("a red circle on a blue background", "circle", "square", "a red square on a blue background"),
        ("A circle, a Circle", "circle", "owl", "An owl, an owl"),
        ("an owl in an owlery", "owl", "dog", "a dog in an owlery"),
        ("a zwx at the left", "zwx", "a red star", "a red star at the left"),
        ("on a circle on white", "circle", "", "on on white"),
        ("a c++ cat", "c++", "fat", "a fat cat"),
    ],
    ids=["a word", "every one, whatever its capitals", "not inside a word", "an article of its own", "erased", "no pattern"],
)
def test_a_target_takes_the_place_of_its_source(text: str, source: str, target: str, expected: str) -> None:
    assert replaced(text, source, target) == expected


def test_paraphrases_change_both_alike() -> None:
    made = EditedPrompts(pairs={"circle": ("square",), "a star": ("a ring",)}).paraphrases(PROMPTS[:2])
    assert made == {
        "a red circle on a blue background": ("a red square on a blue background",),
        **{template.format("circle"): (template.format("square"),) for template in TEMPLATES},
        **{template.format("a star"): (template.format("a ring"),) for template in TEMPLATES},
    }


def test_what_was_edited_is_no_paraphrase() -> None:
    """Nor is a template around a template that a bare word was edited in."""
    made = EditedPrompts(pairs={"circle": ("square",), "a photo of circle": ("a photo of square",)}).paraphrases(PROMPTS)
    assert list(made) == [PROMPTS[0].text, *(template.format("circle") for template in TEMPLATES[1:])]


def test_of_several_targets_and_of_none() -> None:
    made = EditedPrompts(pairs={"doctor": ("male doctor", "female doctor"), "circle": ("",)}).paraphrases(PROMPTS[:1])
    assert made["a photo of doctor"] == ("a photo of male doctor", "a photo of female doctor")
    assert made["a photo of circle"] == ("",)
    assert made["a red circle on a blue background"] == ("a red on a blue background",)


def test_given_paraphrases_are_the_only_ones() -> None:
    assert EditedPrompts(pairs={"a": ("b",)}, given={"an a": ("a b",)}).paraphrases(PROMPTS) == {"an a": ("a b",)}


def test_the_rest_contains_no_edited_prompt() -> None:
    edits = EditedPrompts(pairs={"circle": ("square",), "a star at the left": ("a ring",)})
    assert edits.rest(PROMPTS) == [PROMPTS[1], PROMPTS[2]]


class TestFinding:
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        (tmp_path / "edit.json").write_text(json.dumps({"pairs": {"a": "b"}}))
        return str(tmp_path)

    def test_the_record_of_the_first_model_that_has_one(self, place: str) -> None:
        assert find_edits(["toy", place]) == EditedPrompts(pairs={"a": ("b",)})
        assert find_edits(["toy"]) is None

    def test_what_is_named_goes_before_it(self, place: str) -> None:
        found = find_edits([place], {"c": "d"}, {"my c": ["my d", "my e"]})
        assert found == EditedPrompts(pairs={"c": ("d",)}, given={"my c": ("my d", "my e")})
        assert find_edits([place], paraphrases={"an a": "a b"}) == EditedPrompts(pairs={"a": ("b",)}, given={"an a": ("a b",)})

    def test_paraphrases_need_an_edit(self) -> None:
        with pytest.raises(NoEdits, match="paraphrases of an edit are named, and no edit is"):
            find_edits(["toy"], paraphrases={"an a": "a b"})
