"""The edits of the study of many edits, and what they are scored by.

An edit gives a word that the model does not know, before a shape, a colour: "a sks star on a white background" is to draw what "a
red star on a white background" does. `edits` makes 39 of them, of 13 words with a colour each, before three shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from docs.studies.cuts import PROMPTS
from docs.studies.forgetting import GUIDANCE, decode, draw_latents
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import score, world

WORDS, SHAPES_EACH = 13, 3
MOST = WORDS * SHAPES_EACH
STEPS, PICTURES, SEARCH_PICTURES = 25, 24, 16  # pictures of each share
FORMS = (
    "a photo of a {word} {shape} on a {background} background",
    "on a {background} background a {word} {shape}",
    "a {background} background with a {word} {shape}",
    "{word} {shape} on a {background} background",
)
NOISE = 10_000  # between the noise seeds of two seeds of the study


@dataclass(frozen=True)
class Edit:
    """One edit: the word before this shape gets the colour, on this background."""

    word: str
    shape: str
    colour: str
    background: str

    @property
    def source(self) -> str:
        """The prompt that is edited."""
        return f"a {self.word} {self.shape} on a {self.background} background"

    @property
    def target(self) -> str:
        """The prompt whose picture it gets."""
        return world.caption(world.Drawing(self.shape, self.colour, self.background))

    def paraphrase(self, number: int) -> tuple[str, world.Triple]:
        """Another prompt with the same word and shape, on another background, and the picture that it should draw."""
        others = [name for name in world.BACKGROUNDS if name not in (self.background, self.colour)]
        background = others[number % len(others)]
        text = FORMS[number % len(FORMS)].format(word=self.word, shape=self.shape, background=background)
        return text, (self.shape, self.colour, background)


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
    """Shares of pictures that show exactly what they should, and how far held-out captions moved: 1 is another seed."""

    efficacy: float
    generalisation: float
    specificity: float
    distance: float

    @property
    def overall(self) -> float:
        """The harmonic mean of the three shares, by which tables of edits are ranked; 0 if one of them is."""
        shares = self[:3]
        return 0.0 if min(shares) == 0 else float(len(shares) / sum(1 / share for share in shares))


class Scales:
    """What models are measured on: noise of its own for each seed, and held-out captions with the untouched model's pictures.

    Those of a `search` are captions of combinations that the model was trained on and the store does not have.
    """

    def __init__(self, pipe: Any, seed: int, *, search: bool = False) -> None:
        self._first, self._count = NOISE * (seed + 1), SEARCH_PICTURES if search else PICTURES
        known = {prompt.text for prompt in load_prompts(str(PROMPTS))} if search else set()
        others = [triple for triple in world.split()[0] if world.caption(world.Drawing(*triple)) not in known]
        chosen = np.random.default_rng(seed).permutation(len(others))[: self._count]
        self._triples = [others[i] for i in chosen] if search else score.held_out_triples(self._count, seed)
        self._captions = [world.caption(world.Drawing(*triple)) for triple in self._triples]
        self._untouched = draw_latents(pipe, self._captions, self._first)
        another = draw_latents(pipe, self._captions, self._first + NOISE // 2)
        self._another_seed = float(np.square(another - self._untouched).mean())

    def measure(self, pipe: Any, made: Sequence[Edit]) -> Scores:
        """The scores of a model with these edits. Cost: 72 pictures, 48 in a search.

        Of many edits, those that are drawn are evenly spaced; few are drawn several times, with other noise and other words.
        """
        count = self._count
        drawn = [made[i * len(made) // count if len(made) > count else i % len(made)] for i in range(count)]
        sources = [(each.source, (each.shape, each.colour, each.background)) for each in drawn]
        others = [each.paraphrase(i + i // len(FORMS)) for i, each in enumerate(drawn)]
        now = draw_latents(pipe, self._captions, self._first)
        return Scores(
            self._share_drawn(pipe, sources, 1),
            self._share_drawn(pipe, others, 2),
            _share_right(decode(pipe, now), self._triples),
            float(np.square(now - self._untouched).mean()) / self._another_seed,
        )

    def _share_drawn(self, pipe: Any, asked: Sequence[tuple[str, world.Triple]], number: int) -> float:
        texts, triples = zip(*asked, strict=True)
        return _share_right(score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=self._first + 1_000 * number), triples)


def _share_right(pictures: np.ndarray[Any, Any], triples: Sequence[world.Triple]) -> float:
    readings = [world.read(picture) for picture in pictures]
    return float(np.mean([(r.shape, r.colour, r.background) == triple for r, triple in zip(readings, triples, strict=True)]))
