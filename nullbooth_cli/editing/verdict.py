"""The answers about an edit: how much of it is missing, also in other prompts that have what is edited, and how far it moves the
rest; a number, a word, and what to do.

The words are what the embedded model drew (docs/studies/edit_words.py): with at most 0.6 missing 0.96 of the targets, with 0.9 or
more 0.08; with a drift of at most 0.2 0.98 of other prompts were read as before, above 0.5 0.59. Of prompts that have an edited
word 0.94 changed with at most 0.6 missing elsewhere, with 0.75 or more 0.05 (docs/studies/edit_elsewhere.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nullbooth_cli.formatting import counted, listed

if TYPE_CHECKING:
    from nullbooth_cli.editing.contexts import InContext

MISSING_LITTLE, MISSING_MUCH = 0.6, 0.9  # the most that is missing of a target that is reached, the least of one that is not
REACHED, PARTLY, OUT_OF_REACH = "reached", "partly reached", "out of reach"
ELSEWHERE_MUCH = 0.75  # the least that is missing in other prompts of which none changes
DRIFT_LITTLE, DRIFT_SOME = 0.2, 0.5  # the most of each
REACH_MORE = "cut the projectors at a larger threshold, or lower the ridge: both drift more"
PRESERVED = "what is to change is itself preserved: collect without the prompts that have it"
ALONE = "the edit holds for what was named and not in sentences: edit prompts around it too, or name another target"
DRIFT_LESS = "cut the projectors at a smaller threshold, raise the ridge, or edit fewer prompts"


@dataclass(frozen=True, kw_only=True)
class EditVerdict:
    """The answer to one question about an edit.

    `missing` is a share of 1, and `of` names the pair that is furthest from its target. `elsewhere` is that share in the
    preserved or held-out prompts that have what is edited, and `of` names those prompts, the worst first. `drift` is the largest
    of all weights, and `of` says on which prompts. `word` names the part of the scale that `value` lies in, `advice` what to do
    (None if it `is_good`).
    """

    question: Literal["missing", "elsewhere", "drift"]
    value: float
    word: str
    is_good: bool
    of: str
    advice: str | None

    @property
    def text(self) -> str:
        """One line: `missing 0.53 of 1: reached ('a sks star')`."""
        scale = "" if self.question == "drift" else " of 1"
        question = "missing elsewhere" if self.question == "elsewhere" else self.question
        return f"{question} {self.value:.2g}{scale}: {self.word} ({self.of})"

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


def elsewhere(in_context: "Sequence[InContext]") -> EditVerdict:
    """The verdict on the share that is missing in other prompts that have what is edited: the worst counts."""
    found = sorted(in_context, key=lambda each: -math.inf if math.isnan(each.missing) else -each.missing)
    worst, word = found[0], elsewhere_word(found[0].missing)
    of = listed(
        [f"{counted(each.count, f'{each.prompts} prompt')} with {each.concept!r} {each.missing:.2g}" for each in found], 4
    )
    advice = PRESERVED if any(each.prompts == "preserved" and each.missing > MISSING_LITTLE for each in found) else ALONE
    good = word == REACHED
    return EditVerdict(question="elsewhere", value=worst.missing, word=word, is_good=good, of=of, advice=None if good else advice)


def drift(by_prompts: Mapping[str, float]) -> EditVerdict:
    """The verdict on the largest drift of all weights, by the name of each set of prompts: the worst counts."""
    value = _worst(by_prompts)[1]
    shown = float(f"{value:.2g}")
    word = "little" if shown <= DRIFT_LITTLE else "some" if shown <= DRIFT_SOME else "much"
    good = word == "little"
    of = ", ".join(f"{prompts} prompts {moved:.2g}" for prompts, moved in by_prompts.items())
    return EditVerdict(question="drift", value=value, word=word, is_good=good, of=of, advice=None if good else DRIFT_LESS)


def reach_word(value: float, much: float = MISSING_MUCH) -> str:
    """The word for a share that is missing; from `much` on it is out of reach."""
    shown = float(f"{value:.2g}")  # the word is that of the figure that is printed
    return REACHED if shown <= MISSING_LITTLE else PARTLY if shown < much else OUT_OF_REACH


def elsewhere_word(value: float) -> str:
    """The word for a share that is missing in other prompts."""
    return reach_word(value, ELSEWHERE_MUCH)


def _worst(values: Mapping[str, float]) -> tuple[str, float]:
    return max(values.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
