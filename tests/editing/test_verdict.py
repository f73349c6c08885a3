"""The words for what is missing of an edit, and for its drift."""

import pytest

from nullbooth_cli.editing.verdict import drift, missing, reach_word


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
