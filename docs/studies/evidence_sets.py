"""The prompts of the study of evidence, by sets, and what a model is measured by on them.

Every caption of a set is drawn from noise of its own, the same for every model. Settings are chosen on `validated_sets` and from
other noise; the captions that ask for the subject are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from docs.studies.cuts import PROMPTS, other_captions
from docs.studies.evidence_overlaps import Judge
from docs.studies.refit import GUIDANCE
from docs.studies.refit_subjects import STYLED, Taught
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import score, subject, world

ANOTHER_SEED = 1_000_000  # added to the seeds of noise, it gives the distance that is 1
ASKED, OTHERS = 24, 12  # pictures of the subject; of another word
Picture = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Captions, and how they are drawn: from the noise of `seed` and the following, by `ddim` in place of the model's sampler.

    `read`: whether the scorer can read what these captions ask for.
    """

    name: str
    captions: tuple[str, ...]
    seed: int
    guidance: float = GUIDANCE
    ddim: bool = False
    read: bool = True

    def judge(self, number: int, picture: Picture) -> Judge:
        """Whether a picture of a caption shows every part that it names."""
        asked = world.named(self.captions[number])

        def is_right() -> bool:
            found = world.read(picture)
            return all(getattr(found, part) == value for part, value in asked.items())

        return is_right


def _held_out(count: int) -> list[world.Triple]:
    return score.held_out_triples(48)[:count]


def _written(form: str, count: int = 16) -> tuple[str, ...]:
    """Held-out combinations in another form of sentence."""
    places, others = list(world.PLACES), score.held_out_triples(48)[16:32]
    return tuple(
        form.format(shape=shape, colour=colour, background=background, place=places[i % len(places)], other=others[i])
        for i, (shape, colour, background) in enumerate(_held_out(count))
    )


@cache
def shared_sets() -> tuple[PromptSet, ...]:
    """The sets that are the same for every subject."""
    preserved = [prompt.text for prompt in load_prompts(str(PROMPTS))][::10]
    held_out = _written("a {colour} {shape} on a {background} background")
    return (
        PromptSet(name="preserved", captions=tuple(preserved), seed=1000),
        PromptSet(name="held-out", captions=tuple(world.caption(world.Drawing(*each)) for each in _held_out(48)), seed=2000),
        PromptSet(name="a photo of", captions=_written("a photo of a {colour} {shape} on a {background} background"), seed=3000),
        PromptSet(name="another order", captions=_written("a {background} background with a {colour} {shape}"), seed=3100),
        PromptSet(name="a place", captions=_written("a {colour} {shape} at the {place} of a {background} background"), seed=3200),
        PromptSet(
            name="two things",
            captions=_written("a {colour} {shape} and a {other[1]} {other[0]} on a {background} background"),
            seed=3300,
            read=False,
        ),
        PromptSet(name="a thing", captions=_written("a {colour} thing on a {background} background"), seed=3400),
        PromptSet(name="few words", captions=_written("a {colour} {shape}"), seed=3500),
        PromptSet(name="no words", captions=("",) * 16, seed=3600, read=False),
        PromptSet(name="guidance 7.5", captions=held_out, seed=3700, guidance=7.5),
        PromptSet(name="another sampler", captions=held_out, seed=3800, ddim=True),
    )


def own_sets(taught: Taught) -> tuple[PromptSet, ...]:
    """Those of a subject: what shares its noun, another unknown word, and its word before things that it does not mean."""
    things = [(colour, shape) for shape, colour, _ in _held_out(48)]
    if taught.name == "style":
        things = [(colour, shape) for shape, colour in STYLED]
    elif taught.noun:
        things = [(colour, taught.noun) for colour, _ in things]
    backgrounds = [triple[2] for triple in _held_out(48)]
    own = [f"a {c} {s} on a {b} background" for (c, s), b in zip(things * 12, backgrounds, strict=False) if c != b][:24]
    others = [each for each in _held_out(48) if each[0] != taught.noun][:16]
    before = "a {} {} {} on a {} background"
    return (
        PromptSet(name="own class", captions=tuple(own), seed=4000),
        PromptSet(
            name="another unknown word",
            captions=tuple(before.format(taught.other_word, c, s, b) for s, c, b in others),
            seed=4100,
        ),
        PromptSet(
            name="word before others", captions=tuple(before.format(taught.word, c, s, b) for s, c, b in others), seed=4200
        ),
    )


def validated_sets() -> tuple[PromptSet, ...]:
    """What settings are chosen by: captions that the model was trained on, and that are neither preserved nor held out."""
    captions = other_captions()
    return (PromptSet(name="validated", captions=tuple(captions[:: len(captions) // 24][:24]), seed=7000),)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Captions of a subject, on backgrounds that no taught picture has: with its word, or with another."""

    taught: Taught
    word: str
    count: int
    seed: int

    @property
    def backgrounds(self) -> list[str]:
        """That of each picture."""
        return [subject.ASKED_ON[i % len(subject.ASKED_ON)] for i in range(self.count)]

    @property
    def captions(self) -> tuple[str, ...]:
        """One for each picture."""
        return tuple(self.taught.caption(background, self.word, i) for i, background in enumerate(self.backgrounds))

    def judge(self, number: int, picture: Picture) -> Judge:
        """Whether a picture shows the subject."""
        return lambda: self.taught.is_drawn(picture, self.backgrounds[number], number)


def asked_of(taught: Taught, *, validates: bool) -> Mapping[str, Asked]:
    """By the name of the score: `learned`, and in the report `other word`."""
    if validates:
        return {"learned": Asked(taught=taught, word=taught.word, count=ASKED, seed=8000)}
    return {
        "learned": Asked(taught=taught, word=taught.word, count=ASKED, seed=5000),
        "other word": Asked(taught=taught, word=taught.other_word, count=OTHERS, seed=6000),
    }
