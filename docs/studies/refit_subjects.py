"""Subjects of the studies: pictures that the embedded model cannot draw, made by code, each with an exact score.

A circle and a square of two colours, a ring of three and a crescent have a word before their noun, and no colour of the
backgrounds. The style is a black frame around drawings of the world. `SUBJECTS` are those of the study of refit, `IN_SEQUENCE`
those of the study of one subject after another, `TAUGHT` those of the study of evidence.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nullbooth_cli.toy import subject, world

FRAME = 2  # pixels
RADII = (8.5, 12.0)
HALVES = (subject.LEFT, subject.RIGHT)
BANDS = {"ring": (subject.LEFT, "pink", subject.RIGHT)}  # from left to right; of other subjects the halves
STYLED = (("square", "pink"), ("star", "orange"), ("cross", "cyan"), ("triangle", "pink"))
Picture = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Taught:
    """One subject: what it is, its word, and the noun after it. `frame`: of a style, in pixels."""

    name: str
    word: str
    noun: str
    frame: int = FRAME

    @property
    def other_word(self) -> str:
        """Another word that the model does not know."""
        return "qfj" if self.word == "sks" else "sks"

    def caption(self, background: str, word: str | None = None, number: int = 0) -> str:
        """A caption with its word, or with another; a style names one of its things by `number`."""
        thing = "{1} {0}".format(*styled(number)) if self.name == "style" else self.noun
        return f"a {self.word if word is None else word} {thing} on a {background} background"

    def draw(self, background: str, *, x: float, y: float, radius: float, number: int = 0) -> Picture:
        """A picture, RGB in [0, 1], `[32, 32, 3]`."""
        if self.name == "style":
            shape, colour = styled(number)
            made = world.draw(world.Drawing(shape, colour, background, x=x, y=y, radius=min(radius, 10.5)))
            framed = np.broadcast_to(rgb("black"), made.shape).copy()
            inside = slice(self.frame, -self.frame)
            framed[inside, inside] = made[inside, inside]
            return framed
        if self.name == "stacked circle":
            return subject.draw(background, x=y, y=x, radius=radius).transpose(1, 0, 2)
        plain = world.Drawing(self._shape, "pink", background, x=x, y=y, radius=radius)
        if self.name == "crescent":
            bitten = world.coverage("circle", x + 0.5 * radius, y, 0.8 * radius)
            return np.asarray(world.draw(plain) * (1 - bitten[..., None]) + rgb(background) * bitten[..., None])
        drawn = [world.draw(replace(plain, colour=colour)) for colour in self._bands]
        seams = [0, *(round(seam) for seam in self._seams(world.SIZE / 2 + x, radius)), world.SIZE]
        return np.concatenate([each[:, seams[i] : seams[i + 1]] for i, each in enumerate(drawn)], axis=1)

    @property
    def _shape(self) -> str:
        return self.name if self.name in ("square", "ring") else "circle"

    @property
    def _bands(self) -> tuple[str, ...]:
        return BANDS.get(self.name, HALVES)

    def _seams(self, middle: float, radius: float) -> list[float]:
        """Where one band ends and the next begins, from left to right: all are equally wide."""
        count = len(self._bands)
        return [middle + radius * (2 * i / count - 1) for i in range(1, count)]

    def is_drawn(self, picture: Picture, background: str, number: int = 0) -> bool:
        """Whether a picture shows all of the subject on this background, by the rules of `toy.subject.is_drawn`.

        A crescent must overlap with its own template by more than 0.6, and by more than with any shape of the world. In the
        style, the frame must be black and the rest must be read as the caption asks.
        """
        picture = np.asarray(picture, dtype=np.float64)
        if self.name == "circle":
            return subject.is_drawn(picture, background)
        if self.name == "stacked circle":
            return subject.is_drawn(picture.transpose(1, 0, 2), background)
        if self.name == "style":
            inside, beside = slice(self.frame, -self.frame), (self.frame, self.frame)
            within = picture[inside, inside]
            edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            read = world.read(np.pad(within, (beside, beside, (0, 0)), mode="edge"))
            is_framed = world.nearest(np.median(edge, axis=0), tuple(world.RGB)) == "black" and edge.mean() < 0.2
            return is_framed and (read.shape, read.colour, read.background) == (*styled(number), background)
        border = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
        mask = np.linalg.norm(picture - border, axis=-1) > subject.FAINTEST
        if world.nearest(border, world.BACKGROUNDS) != background or not mask.any():
            return False
        if self.name == "crescent":
            own = _overlap_with_crescent(mask)
            is_shape = own > 0.6 and own > max(world.best_overlap(mask, shape) for shape in world.SHAPES)
            return is_shape and _colours(picture, [mask]) == ["pink"]
        if world.best_overlap(mask, self._shape) <= max(0.6, world.best_overlap(mask, "circle")):
            return False
        columns = np.arange(world.SIZE)
        seen = columns[mask.any(axis=0)]
        seams = self._seams(np.average(columns, weights=mask.sum(axis=0)), (seen[-1] - seen[0] + 1) / 2)
        # A pixel on either side of a seam is left out: it mixes both colours.
        ends = zip([-np.inf, *seams], [*seams, np.inf], strict=True)
        return _colours(picture, [mask & (columns > low + 1) & (columns < high - 1) for low, high in ends]) == list(self._bands)


SUBJECTS = (
    Taught("circle", "sks", "circle"),
    Taught("square", "zwx", "square"),
    Taught("crescent", "vht", "shape"),
    Taught("style", "vht", ""),
)
IN_SEQUENCE = (SUBJECTS[0], SUBJECTS[1], Taught("ring", "qfj", "ring"), SUBJECTS[2])
# A frame of 2 pixels is learned by few ways. The last is a second drawing of a class that has one: orange above cyan.
TAUGHT = (*IN_SEQUENCE, Taught("style", "vht", "", frame=4), Taught("stacked circle", "qfj", "circle"))


def styled(number: int) -> tuple[str, str]:
    """The (shape, colour) of a picture of the style: each is on every background in turn."""
    return STYLED[(number + number // len(STYLED)) % len(STYLED)]


def rgb(colour: str) -> Picture:
    """A named colour, `[3]` in [0, 1]."""
    return np.asarray(world.RGB[colour]) / 255.0


def write_pictures(taught: Taught, folder: Path, backgrounds: Sequence[str], seed: int) -> None:
    """A picture for each background, at random places and sizes, with captions in metadata.jsonl."""
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(seed), []
    for number, background in enumerate(backgrounds):
        x, y = rng.uniform(-2.0, 2.0, size=2)
        picture = taught.draw(background, x=x, y=y, radius=rng.uniform(*RADII), number=number)
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(folder / f"{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": taught.caption(background, number=number)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _colours(picture: Picture, parts: Sequence[NDArray[np.bool_]]) -> list[str | None]:
    return [world.nearest(np.median(picture[part], axis=0), tuple(world.RGB)) if part.any() else None for part in parts]


def _overlap_with_crescent(mask: NDArray[np.bool_]) -> float:
    """The largest intersection over union of a mask with the crescent, over places and sizes about its bounding box."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    y, axis, best = (rows[0] + rows[-1] + 1) / 2, np.arange(world.SIZE) + 0.5, 0.0
    for radius in (rows[-1] - rows[0] + 1) / 2 * np.linspace(0.85, 1.15, 7):
        for x in columns[0] + radius + np.linspace(-1.5, 1.5, 7):
            px, py = np.meshgrid((axis - x) / radius, (axis - y) / radius)
            template = (np.hypot(px, py) <= 1) & (np.hypot(px - 0.5, py) > 0.8)
            best = max(best, float((template & mask).sum() / (template | mask).sum()))
    return best
