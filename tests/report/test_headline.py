"""What a page answers first: its words follow from the numbers."""

from dataclasses import replace

import pytest

from nullbooth_cli.evaluation.verdict import edited, learned
from nullbooth_cli.report.headline import model_answers, threshold_answers
from nullbooth_cli.report.inspection import Rule
from nullbooth_cli.report.ladder import Ladder, Rung
from tests.support.evaluations import report
from tests.support.reports import inspect_report

RULE = Rule("relative_threshold", 1e-3)


def ladder(*rungs: tuple[float, int, float, int]) -> Ladder:
    """Rungs of (value, null_dim, leakage on held-out prompts, empty sites)."""
    made = tuple(
        Rung(
            value=value,
            null_dim=null_dim,
            dim=16,
            largest_leakage=leakage / 2,
            largest_heldout_leakage=leakage,
            empty=empty,
            below_noise=0,
            sites=(),
        )
        for value, null_dim, leakage, empty in rungs
    )
    return Ladder(store="run.zarr", scope="pooled", rule=RULE, heldout=True, ladder=made)


def test_a_good_threshold() -> None:
    threshold, leakage, cost = threshold_answers(inspect_report())
    assert threshold.value == "relative_threshold 0.001"
    assert threshold.detail == "2 sites for 5 weights; one projector for all timesteps"
    assert (leakage.value, leakage.word, leakage.is_good, leakage.advice) == ("leaks 0.04", "good", True, None)
    assert leakage.detail == "of held-out prompts' inputs at most, in the worst site; up to 0.1 is good"
    assert (cost.value, cost.word, cost.is_good, cost.advice) == ("62 % is frozen", None, None, None)
    assert cost.detail.startswith("6 of 16 dimensions are null")


def test_the_limit_itself_is_good() -> None:
    assert threshold_answers(inspect_report(heldout=0.1))[1].is_good
    assert not threshold_answers(inspect_report(heldout=0.1001))[1].is_good


def test_without_held_out_prompts_the_collected_ones_count_and_the_page_says_so() -> None:
    _, leakage, _ = threshold_answers(inspect_report(heldout=None))
    assert (leakage.value, leakage.is_good) == ("leaks 0.02", True)
    assert "the collected prompts" in leakage.detail
    assert leakage.advice == "measure prompts that were not collected: set heldout_prompts"


def test_a_leak_names_the_threshold_that_leaves_most_room() -> None:
    tried = ladder((1e-5, 1, 0.01, 1), (1e-4, 3, 0.08, 0), (3e-4, 4, 0.09, 0), (1e-3, 6, 0.2, 0))
    _, leakage, _ = threshold_answers(inspect_report(heldout=0.2), tried)
    assert (leakage.word, leakage.is_good) == ("leaks too much", False)
    assert leakage.advice == "relative_threshold 0.0003 would leak 0.09, with 4 of 16 dimensions free"
    _, leakage, _ = threshold_answers(inspect_report(heldout=0.2), ladder((1e-5, 1, 0.01, 1), (1e-3, 6, 0.2, 0)))
    assert leakage.advice == "no threshold leaks less and leaves every site a null space: collect more prompts"
    assert threshold_answers(inspect_report(heldout=0.2))[1].advice == "choose a smaller threshold"


def test_a_site_without_a_null_space_is_a_cost() -> None:
    cost = threshold_answers(inspect_report(empty=True))[2]
    assert (cost.word, cost.is_good) == ("1 site cannot learn at all", False)
    assert cost.advice == "choose a larger threshold"


@pytest.mark.parametrize(("change", "word", "is_good"), [(0.02, "hardly anything", True), (0.9, "much", False)])
def test_verdicts_of_a_model(change: float, word: str, is_good: bool) -> None:
    (model,) = report(["a"], ["one"], [change]).models
    model = replace(model, verdicts=(learned(0.92, 0.25, "exact scorer"), *model.verdicts[1:]))
    taught, forgot, drifted = model_answers(model)
    assert (taught.question, taught.value, taught.word) == ("Learned?", "0.92 of 1", "well")
    assert taught.detail == "exact scorer; the base 0.25"
    assert (forgot.question, forgot.word, forgot.is_good) == ("Forgotten?", word, is_good)
    assert forgot.value == f"{change / 2:.2g} of another seed"
    assert (forgot.advice is None) == is_good
    assert (drifted.value, drifted.is_good) == ("0.1", None)
    assert "0.3 on held-out inputs" in drifted.detail
    assert drifted.detail.endswith("2 protected weights changed, 1 other")


def test_the_scores_of_an_edit_and_no_drift() -> None:
    (model,) = report(["a"], ["one"], [0.02]).models
    verdicts = tuple(edited(question, 0.5, 0.25, "exact scorer") for question in ("efficacy", "generalisation", "specificity"))
    answers = model_answers(replace(model, verdicts=verdicts, drift=None))
    assert [answer.question for answer in answers] == [
        "Do edited prompts draw their targets?",
        "Do paraphrases of them?",
        "Do other prompts stay?",
    ]
    assert [(answer.value, answer.word, answer.is_good) for answer in answers[:2]] == [("0.50 of 1", "fair", False)] * 2
    assert answers[0].detail == "exact scorer; the base 0.25"
