"""Numbers, bytes and seconds as people read them."""

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.formatting import (
    aligned,
    counted,
    duration,
    listed,
    operations,
    percent,
    rate,
    size,
    visible,
    without_shared_ending,
)


@given(st.lists(st.floats(1e-9, 1e9) | st.just(0.0), min_size=1, max_size=20))
def test_aligned_numbers_have_equal_decimals_and_their_values(values: list[float]) -> None:
    shown = aligned(values)
    assert len({len(text.partition(".")[2].partition("e")[0]) for text in shown}) == 1
    assert [float(text) for text in shown] == pytest.approx(values, rel=1e-5, abs=5e-7)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([999.0, 12.0], ["999", "12"]),
        ([999.0, 12.5], ["999.0", "12.5"]),
        ([0.5, 0.99999, None], ["0.50000", "0.99999", ""]),
        ([1e-8, 3e-2], ["1e-08", "3e-02"]),
    ],
)
def test_aligned(values: list[float | None], shown: list[str]) -> None:
    assert aligned(values) == shown


@given(st.lists(st.from_regex(r"\A[ab](\.[ab]){0,3}\Z"), min_size=1, max_size=5))
def test_a_shared_ending_is_said_once(names: list[str]) -> None:
    shorter, ending = without_shared_ending(names)
    assert [name + ending for name in shorter] == names
    assert all(shorter)
    last = {name.rpartition(".")[2] for name in shorter}
    assert len(last) > 1 or any("." not in name for name in shorter), "nothing shared is left but a first part"


def test_rates_are_for_people() -> None:
    assert [rate(seconds) for seconds in (0.01, 0.9, 6.5, 300.0)] == [
        "6,000 units/min",
        "67 units/min",
        "6.5 s/unit",
        "300.0 s/unit",
    ]
    assert duration(11_000) == "3 h 3 min"


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (5, 1500, 2_500_000, 3 * 10**9, 4 * 10**13)] == [
        "5 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "40.0 TB",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (11_000, "3 h 3 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 10**24))
def test_sizes_and_operations_are_short(count: int) -> None:
    for text in (size(min(count, 10**14)), operations(min(count, 10**20))):
        assert re.fullmatch(r"\d{1,4}(\.\d)? [a-zA-Z]+", text), text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (9e-7, "less than 0.0001 %"),
        (1e-6, "0.0001 %"),
        (0.000123, "0.012 %"),
        (0.0996, "10 %"),
        (0.123, "12 %"),
        (1.0, "100 %"),
        (12.34, "1234 %"),
    ],
)
def test_shares_are_in_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_counts_have_their_noun() -> None:
    assert [counted(count, "layer") for count in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


def test_a_long_list_is_its_beginning_and_a_count() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list(range(8)), most=3) == "0, 1, 2 and 5 more"
    assert listed(["a", "b", "c"], most=2, lines=True) == "\n  a\n  b\n  and 1 more"
    assert listed(["a"], lines=True) == "\n  a"


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_a_visible_text_steers_no_terminal(text: str) -> None:
    shown = visible(text)
    assert not [
        c for c in shown if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t") or c in "\u202e\u2066\u200f"
    ]
    assert visible(shown) == shown
    assert shown.encode().decode() == shown
    if text.isprintable():
        assert shown == text


@given(ANY_TEXT)
def test_a_visible_json_document_is_the_same_document(text: str) -> None:
    assert json.loads(visible(json.dumps({text: [text]}, ensure_ascii=False))) == {text: [text]}
