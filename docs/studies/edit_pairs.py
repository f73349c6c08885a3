"""The edits of the study of many edits, and what they are scored by.

In the embedded model's world an edit gives a word that the model does not know, before a shape, a colour: "a sks star on a white
background" is to draw what "a red star on a white background" does. `edits` makes 39 of them, of 13 words with a colour each,
before three shapes. `names_world.py` has the other world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from docs.studies.cuts import PROMPTS
from docs.studies.forgetting import GUIDANCE, decode, draw_latents
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import score, world

WORDS, SHAPES_EACH = 13, 3
MOST = WORDS * SHAPES_EACH
STEPS, PICTURES, SEARCH_PICTURES = 25, 24, 16  # pictures of each share
FORMS = (
    "a photo of a {thing} on a {background} background",
    "on a {background} background a {thing}",
    "a {background} background with a {thing}",
    "{thing} on a {background} background",
)
NOISE = 10_000  # between the noise seeds of two seeds of the study
SEARCH_SEED = 3
Caption = tuple[str, world.Triple]  # a caption, and what its picture is to show


@dataclass(frozen=True)
class Edit:
    """One edit: the word before this shape gets the colour, on this background; a `name` gets the shape as well."""

    word: str
    shape: str
    colour: str
    background: str
    name: bool = False

    @property
    def thing(self) -> str:
        """The subject of the prompt that is edited."""
        return self.word if self.name else f"{self.word} {self.shape}"

    @property
    def source(self) -> str:
        """The prompt that is edited."""
        return f"a {self.thing} on a {self.background} background"

    @property
    def target(self) -> str:
        """The prompt whose picture it gets."""
        return world.caption(world.Drawing(self.shape, self.colour, self.background))

    def pairs(self, wordings: int) -> dict[str, str]:
        """Prompts to edit, and the prompt whose picture each gets; the second wording has the background first."""
        forms = ("a {thing} on a {background} background", FORMS[1])[:wordings]
        seen = f"{self.colour} {self.shape}"
        return {
            form.format(thing=self.thing, background=self.background): form.format(thing=seen, background=self.background)
            for form in forms
        }

    def paraphrase(self, number: int) -> Caption:
        """Another prompt with the same thing, on another background, and the picture that it should draw."""
        others = [name for name in world.BACKGROUNDS if name not in (self.background, self.colour)]
        background = others[number % len(others)]
        text = FORMS[number % len(FORMS)].format(thing=self.thing, background=background)
        return text, (self.shape, self.colour, background)


class World(Protocol):
    """A model, what of it is edited, and what else it has to draw."""

    @property
    def thresholds(self) -> Sequence[float]:
        """The null spaces of the search."""

    @property
    def searched_at(self) -> int:
        """After how many edits the search looks."""

    def model(self, folder: Path) -> str:
        """The model, in the study's folder if it is made there."""

    def edits(self, seed: int) -> list[Edit]:
        """The edits of a seed, in an order of their own; those of `SEARCH_SEED` share no word with the others."""

    def store(self, seed: int) -> str:
        """The name of the store of a seed's preserved prompts."""

    def preserved(self, seed: int) -> str | list[str]:
        """The preserved prompts of a seed, or the file that has them."""

    def names(self, seed: int) -> Mapping[str, Sequence[Caption]]:
        """Captions of names that a seed does not edit: those of "preserved" names, and those of "other" ones."""


class ToyWorld:
    """The embedded model and words that it does not know; it has no names."""

    thresholds: Sequence[float] = (3e-2, 1e-2, 1e-3, 1e-4)
    searched_at = 10

    def model(self, folder: Path) -> str:
        """The embedded model."""
        return "toy"

    def edits(self, seed: int) -> list[Edit]:
        """39 edits."""
        return edits(seed, reserved=seed != SEARCH_SEED)

    def store(self, seed: int) -> str:
        """One for all."""
        return "texts.zarr"

    def preserved(self, seed: int) -> str:
        """The embedded model's prompts."""
        return str(PROMPTS)

    def names(self, seed: int) -> dict[str, list[Caption]]:
        """None."""
        return {}


def edits(seed: int, *, reserved: bool = True) -> list[Edit]:
    """39 edits, in an order of their own. Without `reserved` no word is one of `world.RESERVED_WORDS`."""
    rng = np.random.default_rng(seed)
    words = list(world.RESERVED_WORDS) if reserved else []
    while len(words) < WORDS:
        words = list(dict.fromkeys([*words, world.unknown_word(rng)]))
    made: list[Edit] = []
    for word in words:
        colour = str(rng.choice(world.COLOURS))
        behind = [name for name in world.BACKGROUNDS if name != colour]
        shapes = rng.choice(world.SHAPES, SHAPES_EACH, replace=False)
        made += [Edit(word, str(shape), colour, str(rng.choice(behind))) for shape in shapes]
    return in_order(made, seed)


def in_order(made: Sequence[Edit], order: int) -> list[Edit]:
    """The same edits in an order known by its number."""
    return [made[i] for i in np.random.default_rng(order).permutation(len(made))]


class Scores(NamedTuple):
    """Shares of pictures that show exactly what they should, and how far held-out captions moved: 1 is another seed.

    `preserved_names` and `other_names` are of names that were not edited, None in a world without names.
    """

    efficacy: float
    generalisation: float
    specificity: float
    distance: float
    preserved_names: float | None = None
    other_names: float | None = None

    @property
    def overall(self) -> float:
        """The harmonic mean of three shares, by which tables of edits are ranked; 0 if one of them is.

        The third is the mean of all that was not edited.
        """
        rest = [each for each in (self.specificity, self.preserved_names, self.other_names) if each is not None]
        shares = [self.efficacy, self.generalisation, float(np.mean(rest))]
        return 0.0 if min(shares) == 0 else float(len(shares) / sum(1 / share for share in shares))


class Scales:
    """What models are measured on: noise of its own for each seed, and held-out captions with the untouched model's pictures.

    Those of a search are captions of combinations that the model was trained on and the embedded model's prompts do not have.
    """

    def __init__(self, pipe: Any, seed: int, names: Mapping[str, Sequence[Caption]]) -> None:
        search = seed == SEARCH_SEED
        self._first, self._count = NOISE * (seed + 1), SEARCH_PICTURES if search else PICTURES
        known = {prompt.text for prompt in load_prompts(str(PROMPTS))} if search else set()
        others = [triple for triple in world.split()[0] if world.caption(world.Drawing(*triple)) not in known]
        chosen = np.random.default_rng(seed).permutation(len(others))[: self._count]
        self._triples = [others[i] for i in chosen] if search else score.held_out_triples(self._count, seed)
        self._captions = [world.caption(world.Drawing(*triple)) for triple in self._triples]
        self._names = {kind: asked[: self._count] for kind, asked in names.items()}
        self._untouched = draw_latents(pipe, self._captions, self._first)
        another = draw_latents(pipe, self._captions, self._first + NOISE // 2)
        self._another_seed = float(np.square(another - self._untouched).mean())

    def measure(self, pipe: Any, made: Sequence[Edit]) -> Scores:
        """The scores of a model with these edits. Cost: 24 pictures for each share, 16 in a search.

        Of many edits, those that are drawn are evenly spaced; few are drawn several times, with other noise and other words.
        """
        count = self._count
        drawn = [made[i * len(made) // count if len(made) > count else i % len(made)] for i in range(count)]
        sources = [(each.source, (each.shape, each.colour, each.background)) for each in drawn]
        others = [each.paraphrase(i + i // len(FORMS)) for i, each in enumerate(drawn)]
        now = draw_latents(pipe, self._captions, self._first)
        return Scores(
            efficacy=self._share_drawn(pipe, sources, 1),
            generalisation=self._share_drawn(pipe, others, 2),
            specificity=score.share_right(decode(pipe, now), self._triples),
            distance=float(np.square(now - self._untouched).mean()) / self._another_seed,
            **{f"{kind}_names": self._share_drawn(pipe, asked, 3 + i) for i, (kind, asked) in enumerate(self._names.items())},
        )

    def _share_drawn(self, pipe: Any, asked: Sequence[Caption], number: int) -> float:
        texts, triples = zip(*asked, strict=True)
        return score.share_right(
            score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=self._first + 1_000 * number), triples
        )
