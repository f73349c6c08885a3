"""The answers about an edited model: a number on a scale, a word for it, and what to do if it is not good.

Learned and forgotten; of what the base was taught or edited before, whether it stayed; of an edit, efficacy, generalisation and
specificity.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Share = Literal["efficacy", "generalisation", "specificity"]
Distance = Literal["forgotten", "earlier"]  # 1 is another seed
Question = Literal["learned"] | Distance | Share

LEARNED_WELL, LEARNED_PARTLY = 0.75, 0.5  # the least of each, of 1
REACHED_HIGH, REACHED_FAIR = 0.75, 0.5  # of edited prompts and paraphrases: the least of each, of 1
STAYED_HIGH, STAYED_FAIR = 0.9, 0.75  # of other prompts: the least of each, as a share of the base's
FORGOT_HARDLY, FORGOT_A_LITTLE = 0.05, 0.25  # the most of each; 1 is another seed
DISTANCES: dict[Distance, tuple[str, str, str]] = {  # the words for hardly, a little, and more
    "forgotten": ("hardly anything", "a little", "much"),
    "earlier": ("stayed as it was", "changed a little", "changed much"),
}
EXACT = "exact scorer"
SET_NAMES = {"heldout": "held-out"}  # of sets of prompts, where the reader's name is another than the document's
LEARNED_MORE = "train for more steps, train the word's embedding if it does not, or cut the projectors at a larger threshold"
EDIT_BETTER: dict[Share, str] = {
    "efficacy": "edit with a smaller ridge, or within projectors that are cut at a larger threshold",
    "generalisation": "edit the prompt in more wordings, or its subject alone",
    "specificity": "edit with a larger ridge, or within projectors that are cut at a smaller threshold",
}
FORGOT_LESS = "take an earlier checkpoint, train at a lower rate, or constrain by projectors that are cut at a smaller threshold"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one question about an edited model.

    `learned` and the scores of an edit are on a scale from 0 to 1, with the figure of the base on the same scale. `forgotten` is
    0 for an unchanged model, and 1 for pictures as different as those of another seed; so is `earlier`, on what the base was
    taught or edited before. `word` names the part of the scale that `value` lies in, `measured_by` the quantity, `advice` what to
    do (None if it `is_good`).
    """

    question: Question
    value: float
    base: float | None
    word: str
    is_good: bool
    measured_by: str
    advice: str | None

    @property
    def text(self) -> str:
        """One line: `learned 0.92 of 1: well (exact scorer; base 0.00)`."""
        if self.is_distance:
            return f"{self.question} {self.value:.2g}: {self.word} ({self.measured_by}; 1 is another seed)"
        beside = "" if self.base is None else f"; base {self.base:.2f}"
        return f"{self.question} {self.value:.2f} of 1: {self.word} ({self.measured_by}{beside})"

    @property
    def is_distance(self) -> bool:
        """Whether the value is a share of the distance of another seed, so that less is better."""
        return self.question in DISTANCES

    @property
    def lines(self) -> tuple[str, ...]:
        """The text, and the advice, if there is any, in a line of its own."""
        return (self.text, *([f"  {self.advice}"] if self.advice else []))


def learned(value: float, base: float, measured_by: str) -> Verdict:
    """The verdict on a share of 1 that was learned; what lies outside of the scale counts as its end."""
    value, base = min(max(value, 0.0), 1.0), min(max(base, 0.0), 1.0)
    shown = round(value, 2)  # the word is that of the figure that is printed
    word = "well" if shown >= LEARNED_WELL else "partly" if shown >= LEARNED_PARTLY else "hardly"
    is_good = word == "well"
    return Verdict(
        question="learned",
        value=value,
        base=base,
        word=word,
        is_good=is_good,
        measured_by=measured_by,
        advice=None if is_good else LEARNED_MORE,
    )


def edited(question: Share, value: float, base: float, measured_by: str) -> Verdict:
    """The verdict on a score of an edit; specificity is judged as a share of the base's."""
    share, least = value, (REACHED_HIGH, REACHED_FAIR)
    if question == "specificity":
        share, least = value / base if base else 1.0, (STAYED_HIGH, STAYED_FAIR)
    shown = round(share, 2)
    word = "high" if shown >= least[0] else "fair" if shown >= least[1] else "low"
    is_good = word == "high"
    return Verdict(
        question=question,
        value=value,
        base=base,
        word=word,
        is_good=is_good,
        measured_by=measured_by,
        advice=None if is_good else EDIT_BETTER[question],
    )


def forgotten(relative: Mapping[str, float], advice: str = FORGOT_LESS) -> Verdict:
    """The verdict on the latent MSE relative to another seed's, by the name of each set of prompts: the worst counts."""
    name, value = _worst(relative)
    return _distance("forgotten", value, f"latent MSE on {SET_NAMES.get(name, name)} prompts", advice)


def earlier(relative: Mapping[str, float], shown: tuple[float, float] | None = None, advice: str = FORGOT_LESS) -> Verdict:
    """The verdict on what the base was taught or edited before, from its latent MSE relative to another seed's.

    `relative` is that by prompt: the worst counts, so that one lost subject does not hide among others that stayed. `shown` are
    the shares of the pictures in which the exact scorer finds an earlier subject, by the base and now.
    """
    text, value = _worst(relative)
    of_worst = f"'{text}'" if len(relative) == 1 else f"'{text}', the worst of {len(relative)} prompts"
    of_scorer = "" if shown is None else f", shown in {shown[1]:.2f} of the pictures of all, {shown[0]:.2f} before"
    return _distance("earlier", value, f"latent MSE on {of_worst} of what was taught before{of_scorer}", advice)


def _worst(relative: Mapping[str, float]) -> tuple[str, float]:
    """The name of the largest value, and that; a NaN, the model that draws nothing at all, is larger than all others."""
    return max(relative.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _distance(question: Distance, value: float, measured_by: str, advice: str) -> Verdict:
    shown = float(f"{value:.2g}")  # the word is that of the figure that is printed
    hardly, a_little, much = DISTANCES[question]
    word = hardly if shown <= FORGOT_HARDLY else a_little if shown <= FORGOT_A_LITTLE else much
    is_good = word == hardly
    return Verdict(
        question=question,
        value=value,
        base=None,
        word=word,
        is_good=is_good,
        measured_by=measured_by,
        advice=None if is_good else advice,
    )
