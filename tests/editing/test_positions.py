"""Where the subject of a prompt ends among its tokens, against the tokenizers themselves."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from nullbooth_cli.editing.positions import Ends, Marked, Positions
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from tests.support.tiny import saved
from tests.support.zoo import ENTRIES

LONG = "a sks star at the left of a blue background with a green star and a red circle"


def ends(pipe: Any, source: str, target: str) -> list[Ends]:
    return Positions(pipe).subject_ends(Marked.read(source), Marked.read(target))


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a sks star on a white background", "a red star on a white background", ("sks", "red")),
        ("a [sks star] on a table", "a [red star] on a table", ("star", "star")),
        ("a [sks] on a table", "a [red star] on a table", ("sks", "star")),
        ("a star", "a red star", ("star", "star")),
        ("a star", "a star on a blue background", ("star", "background")),
        ("sks", "a red star", ("sks", "star")),
        ("circle", "", ("circle", "<|startoftext|>")),
        (LONG, "a red star", ("green", "red")),
        ("a sks star", LONG, ("star", "star")),
    ],
)
def test_subjects_end_where_the_words_do(pipe: Any, source: str, target: str, words: tuple[str, str]) -> None:
    """What is left of `LONG`, which is too long, ends with the second star: the mark of the end comes after it."""
    (found,) = ends(pipe, source, target)
    assert found.lengths == (16, 16)
    for text, last, word in zip((source, target), found.last, words, strict=True):
        plain = text.replace("[", "").replace("]", "")
        ids = pipe.tokenizer(plain, padding="max_length", truncation=True, max_length=16).input_ids
        assert pipe.tokenizer.convert_ids_to_tokens([ids[last]])[0].removesuffix("</w>") == word


@pytest.mark.parametrize(
    ("kind", "encoders", "expected"),
    # T5: no mark of the beginning, and a space before each word; every letter is a token. CLIP: a mark, and no spaces.
    [("pixart", [300], (5, 5)), ("sdxl", [77, 77], (4, 4))],
)
def test_other_tokenizers(tmp_path: Path, kind: str, encoders: list[int], expected: tuple[int, int]) -> None:
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(saved(kind, tmp_path), dtype=torch.float32))
    found = ends(pipe, "a [Sks] star", "a [red] star")
    assert [each.lengths for each in found] == [(length, length) for length in encoders]
    assert {each.last for each in found} == {expected}
    assert found == ends(pipe, "a Sks star", "a red star")


def test_two_encoders_whose_tokens_follow_each_other() -> None:
    """HunyuanDiT: its layers receive 77 + 256 tokens, which is neither."""
    torch.manual_seed(0)
    found = ends(ENTRIES["HunyuanDiTPipeline"].build(), "a [b] c", "a [d e] c")
    assert [each.lengths for each in found] == [(77, 77), (256, 256)]


def test_padding_before_the_text() -> None:
    """CogView4 pads on the left: one word more moves all tokens, so no text ends where they begin to differ."""
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="the tokens of 'a b c' cannot be found among those that text_encoder reads"):
        ends(ENTRIES["CogView4Pipeline"].build(), "a [b] c", "a [d e] c")


@pytest.mark.parametrize("text", ["a [sks", "a ]sks[ star", "[a] [b]", "a [] star", "a [ ] star", "a [[sks]] star"])
def test_marks_that_are_not_one_pair(text: str) -> None:
    with pytest.raises(ConfigError, match="does not mark one subject"):
        Marked.read(text)


def test_one_mark_for_two_prompts(pipe: Any) -> None:
    with pytest.raises(ConfigError, match="only one subject is marked in 'a sks' and 'a star'"):
        ends(pipe, "a [sks]", "a star")


def test_a_mark_inside_a_word(pipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"the subject of 'a sta \.\.\.' ends inside a token of its text_encoder"):
        ends(pipe, "a [sta]r", "a [rin]g")
