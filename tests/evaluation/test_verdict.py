"""The scales of the verdicts, at their borders, and what they say."""

import math

import pytest

from nullbooth_cli.evaluation import verdict


@pytest.mark.parametrize(
    ("value", "word"),
    [(1.0, "well"), (0.75, "well"), (0.7499, "well"), (0.744, "partly"), (0.5, "partly"), (0.494, "hardly"), (0.0, "hardly")],
)
def test_the_scale_of_learned(value: float, word: str) -> None:
    found = verdict.learned(value, 0.25, verdict.EXACT)
    assert (found.question, found.value, found.base, found.word) == ("learned", value, 0.25, word)
    assert found.is_good == (found.advice is None) == (word == "well")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "hardly anything"),
        (0.05, "hardly anything"),
        (0.0501, "hardly anything"),
        (0.051, "a little"),
        (0.2501, "a little"),
        (0.256, "much"),
    ],
)
def test_the_scale_of_forgotten(value: float, word: str) -> None:
    found = verdict.forgotten({"preserved": value})
    assert (found.question, found.value, found.base, found.word) == ("forgotten", value, None, word)
    assert found.is_good == (found.advice is None) == (word == "hardly anything")


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.0, "stayed as it was"), (0.05, "stayed as it was"), (0.051, "changed a little"), (0.256, "changed much")],
)
def test_the_scale_of_what_was_taught_before(value: float, word: str) -> None:
    found = verdict.earlier({"a sks dog": value})
    assert (found.question, found.value, found.base, found.word) == ("earlier", value, None, word)
    assert found.is_good == (found.advice is None) == (word == "stayed as it was")
    assert found.text == f"earlier {value:.2g}: {word} (latent MSE on 'a sks dog' of what was taught before; 1 is another seed)"


def test_a_lost_subject_does_not_hide_among_those_that_stayed() -> None:
    found = verdict.earlier({"a sks dog": 0.01, "a zwx cat": 0.8, "a bnd bird": 0.02}, (1.0, 0.958))
    assert (found.value, found.word, found.is_good) == (0.8, "changed much", False)
    assert found.measured_by == (
        "latent MSE on 'a zwx cat', the worst of 3 prompts of what was taught before, "
        "shown in 0.96 of the pictures of all, 1.00 before"
    )
    assert math.isnan(verdict.earlier({"a sks dog": 3.0, "a zwx cat": math.nan}).value)


@pytest.mark.parametrize(
    ("question", "value", "base", "word"),
    [
        ("efficacy", 0.75, 0.0, "high"),
        ("efficacy", 0.744, 0.7, "fair"),
        ("generalisation", 0.5, 0.0, "fair"),
        ("generalisation", 0.494, 0.0, "low"),
        ("specificity", 0.9, 1.0, "high"),
        ("specificity", 0.72, 0.8, "high"),
        ("specificity", 0.894, 1.0, "fair"),
        ("specificity", 0.744, 1.0, "low"),
        ("specificity", 0.0, 0.0, "high"),
    ],
)
def test_the_scales_of_an_edit(question: verdict.Share, value: float, base: float, word: str) -> None:
    """What stays is judged as a share of what was right before."""
    found = verdict.edited(question, value, base, verdict.EXACT)
    assert (found.question, found.value, found.base, found.word) == (question, value, base, word)
    assert found.is_good == (found.advice is None) == (word == "high")
    assert found.advice in (None, verdict.EDIT_BETTER[question])


def test_the_worst_set_of_prompts_decides() -> None:
    found = verdict.forgotten({"preserved": 0.01, "heldout": 0.2, "given": 0.1})
    assert (found.value, found.measured_by) == (0.2, "latent MSE on held-out prompts")


def test_pictures_that_are_not_finite_are_the_worst() -> None:
    found = verdict.forgotten({"preserved": math.nan, "heldout": 3.0})
    assert math.isnan(found.value)
    assert (found.word, found.is_good) == ("much", False)


def test_learned_stays_on_its_scale() -> None:
    assert [(v.value, v.base) for v in (verdict.learned(1.2, -0.1, "DINO"), verdict.learned(-0.1, 0, "DINO"))] == [(1, 0), (0, 0)]


def test_what_they_say() -> None:
    assert verdict.learned(0.917, 0.0, "exact scorer").text == "learned 0.92 of 1: well (exact scorer; base 0.00)"
    assert verdict.edited("specificity", 0.5, 0.98, "exact scorer").text == "specificity 0.50 of 1: low (exact scorer; base 0.98)"
    assert verdict.forgotten({"given": 1.0}, "edit less").advice == "edit less"
    assert verdict.forgotten({"heldout": 0.00321}).text == (
        "forgotten 0.0032: hardly anything (latent MSE on held-out prompts; 1 is another seed)"
    )
