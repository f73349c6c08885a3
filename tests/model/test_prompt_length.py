"""Texts that are too long for a pipeline: what is cut off is what the pipeline loses, and a note shows one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.model.prompt_length import CutText, cut_off_note, cut_texts, token_limits
from tests.support import tiny
from tests.support.builders import PROMPTS

LONG = "a photo of a sks red circle at the left of a blue background with a green star"
WORDS = st.lists(st.sampled_from(["a", "red", "star", "circle", "blue", "background", "with"]), min_size=1, max_size=40)


def test_only_texts_that_are_too_long_are_cut(pipe: Any) -> None:
    assert cut_texts(pipe, [PROMPTS[0], LONG, LONG]) == [CutText(LONG, "with a green star")]


@given(words=WORDS)
@settings(max_examples=40)
def test_without_the_lost_end_the_model_sees_the_same(pipe: Any, words: list[str]) -> None:
    """The embedding of a text and that of what is left of it are equal; of one word less they are not."""

    def embedded(text: str) -> torch.Tensor:
        found: torch.Tensor = pipe.encode_prompt([text], pipe.device, 1, False)[0]
        return found

    text = " ".join(words)
    lost = next((cut.lost for cut in cut_texts(pipe, [text])), "")
    left = text.removesuffix(lost).strip()
    assert left + " " * bool(lost) + lost == text
    assert torch.equal(embedded(text), embedded(left))
    assert not torch.equal(embedded(text), embedded(left.rpartition(" ")[0]))


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("sd1", {"tokenizer": 77}),
        ("sdxl", {"tokenizer": 77, "tokenizer_2": 77}),
        ("sd3", {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256}),
        ("flux", {"tokenizer": 77, "tokenizer_2": 512}),
        ("pixart", {"tokenizer": 300}),
    ],
)
def test_the_limit_is_that_of_the_tokenizer_or_of_the_pipeline(name: str, limits: dict[str, int]) -> None:
    assert token_limits(getattr(tiny, name)()) == limits


def test_t5_loses_what_is_beyond_the_pipelines_length() -> None:
    """Its tokenizer has no limit of its own: 300 tokens are the end mark and 299 of ours."""
    pipe = tiny.pixart()
    text = "x" * 310
    (cut,) = cut_texts(pipe, [text])
    ids = pipe.tokenizer(text).input_ids
    assert cut.lost == "x" * (len(ids) - 300)
    assert cut_texts(pipe, ["x" * (310 - len(cut.lost))]) == []


def test_the_note_counts_all_and_shows_one(pipe: Any) -> None:
    texts = [f"{LONG} {color}" for color in ("red", "green", "blue", "yellow", "red red")]
    assert cut_off_note(pipe, [PROMPTS[0]]) is None
    assert cut_off_note(pipe, [PROMPTS[0], *texts], "caption") == (
        f"5 captions are too long for the tokenizer, which cuts off their ends, such as 'with a green star red' of '{texts[0]}'"
    )
    assert cut_off_note(pipe, texts[:1]) == (
        f"1 prompt is too long for the tokenizer, which cuts off its end, 'with a green star red' of '{texts[0]}'"
    )
