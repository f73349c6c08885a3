"""What a page answers first: which threshold is in force, whether it is good and what it costs; learned, forgotten, drifted."""

from collections.abc import Iterator
from dataclasses import dataclass

from nullbooth_cli.evaluation.answer import Drift, ModelAnswer
from nullbooth_cli.evaluation.verdict import Question, Verdict
from nullbooth_cli.formatting import counted
from nullbooth_cli.nullspace.spectrum import ADVISED_LEAKAGE
from nullbooth_cli.report.inspection import InspectReport
from nullbooth_cli.report.ladder import Ladder, Rung

QUESTIONS: dict[Question, str] = {
    "learned": "Learned?",
    "forgotten": "Forgotten?",
    "earlier": "Did what was taught before stay?",
    "efficacy": "Do edited prompts draw their targets?",
    "generalisation": "Do paraphrases of them?",
    "specificity": "Do other prompts stay?",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question, its answer in a number, the word for it (None where nothing is judged), how it was found, and what to do.

    `is_good` is None where the number is neither good nor bad; `advice` is None where nothing is to be done.
    """

    question: str
    value: str
    word: str | None
    is_good: bool | None
    detail: str
    advice: str | None = None


def threshold_answers(report: InspectReport, ladder: Ladder | None = None) -> tuple[Answer, ...]:
    """The answers about the projectors of a store. The ladder, where it is given, names a threshold that would be better."""
    return (_threshold(report), preservation_answer(report, ladder), _cost(report))


def _threshold(report: InspectReport) -> Answer:
    pooled = "one projector for all timesteps" if report.scope == "pooled" else "one projector for each timestep"
    totals = report.totals
    sites = f"{counted(totals.sites, 'site')} for {counted(totals.weights, 'weight')}"
    return Answer(
        question="Threshold in force",
        value=f"{report.rule.name} {report.rule.value:g}",
        word=None,
        is_good=None,
        detail=f"{sites}; {pooled}",
    )


def preservation_answer(report: InspectReport, ladder: Ladder | None = None) -> Answer:
    """Good is a largest leakage of at most `ADVISED_LEAKAGE`, on held-out prompts where there are any."""
    totals = report.totals
    heldout = totals.largest_heldout_leakage
    leakage = totals.largest_leakage if heldout is None else heldout
    is_good = leakage <= ADVISED_LEAKAGE
    prompts = "the collected prompts" if heldout is None else "held-out prompts"
    limit = f"of {prompts}' inputs at most, in the worst site; up to {ADVISED_LEAKAGE:g} is good"
    unknown = "measure prompts that were not collected: set heldout_prompts" if heldout is None else None
    return Answer(
        question="Does it preserve?",
        value=f"leaks {leakage:.2g}",
        word="good" if is_good else "leaks too much",
        is_good=is_good,
        detail=limit,
        advice=unknown if is_good else _better(ladder),
    )


def _better(ladder: Ladder | None) -> str:
    """The threshold of the ladder that leaves most room to learn and is good."""

    def leakage(rung: Rung) -> float:
        return rung.largest_leakage if rung.largest_heldout_leakage is None else rung.largest_heldout_leakage

    if ladder is None:
        return "choose a smaller threshold"
    found = [rung for rung in ladder.ladder if leakage(rung) <= ADVISED_LEAKAGE and not rung.empty]
    if not found:
        return "no threshold leaks less and leaves every site a null space: collect more prompts"
    best = max(found, key=lambda rung: rung.null_dim)
    room = f"{best.null_dim} of {best.dim} dimensions free"
    return f"{ladder.rule.name} {best.value:g} would leak {leakage(best):.2g}, with {room}"


def _cost(report: InspectReport) -> Answer:
    totals = report.totals
    empty = sum(site.null_dim == 0 for site in report.sites)
    share = 100 * totals.null_dim / totals.dim
    return Answer(
        question="What does it cost?",
        value=f"{100 - share:.0f} % is frozen",
        word=f"{counted(empty, 'site')} cannot learn at all" if empty else None,
        is_good=False if empty else None,
        detail=f"{totals.null_dim} of {totals.dim} dimensions are null: only there can the protected weights learn",
        advice="choose a larger threshold" if empty else None,
    )


def model_answers(model: ModelAnswer) -> tuple[Answer, ...]:
    """The answers about an edited model: its verdicts, and how far its protected weights drift, if that is known."""
    return (*map(_verdict, model.verdicts), *([] if model.drift is None else [_drift(model.drift)]))


def _verdict(found: Verdict) -> Answer:
    if found.is_distance:
        value, scale = f"{found.value:.2g} of another seed", "0 is unchanged, 1 as different as another seed"
    else:
        value, scale = f"{found.value:.2f} of 1", "" if found.base is None else f"the base {found.base:.2f}"
    return Answer(
        question=QUESTIONS[found.question],
        value=value,
        word=found.word,
        is_good=found.is_good,
        detail="; ".join(filter(None, [found.measured_by, scale])),
        advice=found.advice,
    )


def _drift(drift: Drift) -> Answer:
    def details() -> Iterator[str]:
        yield "largest change of the output of a protected weight on preserved inputs, as a share of that output"
        if drift.largest_heldout is not None:
            yield f"{drift.largest_heldout:.2g} on held-out inputs"
        others = counted(len(drift.unprotected_changed), "other")
        yield f"{counted(drift.protected_changed, 'protected weight')} changed, {others}"

    return Answer(
        question="How far do weights drift?", value=f"{drift.largest:.2g}", word=None, is_good=None, detail="; ".join(details())
    )
