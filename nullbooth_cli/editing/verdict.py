"""The two answers about an edit: how much of it is missing, and how far it moves other prompts; a number, a word, and what to do.

The words are what the embedded model drew (docs/studies/edit_words.py): with at most 0.6 missing 0.97 of the targets, with 0.9 or
more none; with a drift of at most 0.2 0.98 of other prompts were read as before, above 0.5 0.61.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MISSING_LITTLE, MISSING_MUCH = 0.6, 0.9  # the most that is missing of a target that is reached, the least of one that is not
REACHED, PARTLY, OUT_OF_REACH = "reached", "partly reached", "out of reach"
DRIFT_LITTLE, DRIFT_SOME = 0.2, 0.5  # the most of each
REACH_MORE = "cut the projectors at a larger threshold, or lower the ridge: both drift more"
DRIFT_LESS = "cut the projectors at a smaller threshold, raise the ridge, or edit fewer prompts"


@dataclass(frozen=True, kw_only=True)
class EditVerdict:
    """The answer to one question about an edit.

    `missing` is a share of 1, and `of` names the pair that is furthest from its target. `drift` is the largest of all weights,
    and `of` says on which prompts. `word` names the part of the scale that `value` lies in, `advice` what to do (None if it
    `is_good`).
    """

    question: Literal["missing", "drift"]
    value: float
    word: str
    is_good: bool
    of: str
    advice: str | None

    @property
    def text(self) -> str:
        """One line: `missing 0.53 of 1: reached ('a sks star')`."""
        scale = " of 1" if self.question == "missing" else ""
        return f"{self.question} {self.value:.2g}{scale}: {self.word} ({self.of})"

    @property
    def lines(self) -> tuple[str, ...]:
        """The text, and the advice, if there is any, in a line of its own."""
        return (self.text, *([f"  {self.advice}"] if self.advice else []))


def missing(by_pair: Mapping[str, float]) -> EditVerdict:
    """The verdict on the share that is missing, by the source of each pair: the worst counts."""
    source, value = _worst(by_pair)
    word = reach_word(value)
    good = word == REACHED
    return EditVerdict(
        question="missing", value=value, word=word, is_good=good, of=f"'{source}'", advice=None if good else REACH_MORE
    )


def drift(by_prompts: Mapping[str, float]) -> EditVerdict:
    """The verdict on the largest drift of all weights, by the name of each set of prompts: the worst counts."""
    value = _worst(by_prompts)[1]
    shown = float(f"{value:.2g}")
    word = "little" if shown <= DRIFT_LITTLE else "some" if shown <= DRIFT_SOME else "much"
    good = word == "little"
    of = ", ".join(f"{prompts} prompts {moved:.2g}" for prompts, moved in by_prompts.items())
    return EditVerdict(question="drift", value=value, word=word, is_good=good, of=of, advice=None if good else DRIFT_LESS)


def reach_word(value: float) -> str:
    """The word for a share that is missing."""
    shown = float(f"{value:.2g}")  # the word is that of the figure that is printed
    return REACHED if shown <= MISSING_LITTLE else PARTLY if shown < MISSING_MUCH else OUT_OF_REACH


def _worst(values: Mapping[str, float]) -> tuple[str, float]:
    return max(values.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
