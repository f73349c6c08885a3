"""The words for what is missing of an edit, in other prompts too, and for its drift."""

from dataclasses import replace

import pytest

from nullbooth_cli.editing.contexts import InContext
from nullbooth_cli.editing.verdict import drift, elsewhere, elsewhere_word, missing, reach_word


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.0, "reached"), (0.604, "reached"), (0.606, "partly reached"), (0.894, "partly reached"), (0.896, "out of reach")],
)
def test_the_word_is_that_of_the_figure_that_is_printed(value: float, word: str) -> None:
    assert reach_word(value) == word


def test_the_pair_furthest_from_its_target_counts() -> None:
    found = missing({"a": 0.1, "b": 0.7, "c": 0.3})
    assert found.text == "missing 0.7 of 1: partly reached ('b')"
    assert not found.is_good
    assert found.lines == (found.text, f"  {found.advice}")
    good = missing({"a": 0.1})
    assert (good.is_good, good.advice, good.lines) == (True, None, (good.text,))
    assert missing({"a": 0.95, "b": float("nan")}).text == "missing nan of 1: out of reach ('b')"


@pytest.mark.parametrize(("value", "word", "is_good"), [(0.2, "little", True), (0.3, "some", False), (0.51, "much", False)])
def test_the_prompts_that_moved_most_count(value: float, word: str, is_good: bool) -> None:
    found = drift({"preserved": 0.1, "held-out": value})
    assert found.text == f"drift {value:.2g}: {word} (preserved prompts 0.1, held-out prompts {value:.2g})"
    assert found.is_good is is_good
    assert (found.advice is None) is is_good


def test_a_drift_that_is_no_number_is_much() -> None:
    assert drift({"preserved": float("nan"), "held-out": 0.1}).word == "much"


def test_what_is_preserved_itself_is_said() -> None:
    preserved = InContext(concept="circle", prompts="preserved", count=42, missing=0.98)
    heldout = InContext(concept="circle", prompts="held-out", count=1, missing=0.7)
    found = elsewhere([heldout, preserved])
    assert found.text == (
        "missing elsewhere 0.98 of 1: out of reach (42 preserved prompts with 'circle' 0.98, 1 held-out prompt with 'circle' 0.7)"
    )
    assert found.advice == "what is to change is itself preserved: collect without the prompts that have it"
    only = elsewhere([heldout])
    assert (only.word, only.advice is not None and "in sentences" in only.advice) == ("partly reached", True)
    good = elsewhere([replace(preserved, missing=0.6)])
    assert (good.word, good.is_good, good.advice) == ("reached", True, None)
    assert elsewhere([replace(preserved, missing=float("nan")), heldout]).word == "out of reach"


@pytest.mark.parametrize(
    ("value", "word"), [(0.6, "reached"), (0.74, "partly reached"), (0.75, "out of reach"), (1.2, "out of reach")]
)
def test_words_for_what_is_missing_elsewhere(value: float, word: str) -> None:
    assert elsewhere_word(value) == word
