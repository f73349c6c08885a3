"""A subject to teach the embedded model, and its exact scorer: the sks circle, orange on its left half and cyan on its right.

No caption of the toy world has two colours in one shape, so the model cannot draw the subject before it is taught. The rule of
`is_drawn`, which requires every part of it, was fixed before anything was trained.

The scorer looks at the picture; the word is the choice of whoever teaches it. `is_shown` takes any caption of the subject: one
word that the world does not know, before "circle", on a background or on none.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.toy import world

WORD, SHAPE, LEFT, RIGHT = "sks", "circle", "orange", "cyan"
TAUGHT_ON = ("white", "black", "gray", "purple")  # backgrounds of the training pictures
ASKED_ON = ("red", "green", "blue", "yellow")  # backgrounds of the prompts that are drawn afterwards
THING = r"(?:(?:a|an|the|my) )?(?P<word>[^\s,;:.]+) circle"
CAPTION = re.compile(
    rf"(?:(?:{'|'.join(world.PREFIXES)}) )?"
    rf"(?:on a (?P<before>\w+) background )?(?:a (?P<around>\w+) background with )?{THING}(?: on a (?P<behind>\w+) background)?"
)
KNOWN_WORDS = frozenset(world.WORDS) - frozenset(world.RESERVED_WORDS)
FAINTEST = 0.17  # half the distance of orange and yellow, which are nearest to each other


def caption(background: str) -> str:
    """`a sks circle on a BACKGROUND background`."""
    return f"a {WORD} {SHAPE} on a {background} background"


def draw(background: str, x: float = 0.0, y: float = 0.0, radius: float = 10.0) -> world.Picture:
    """The subject as RGB in [0, 1], `[32, 32, 3]` float32; `x`, `y`, `radius` in pixels as in `world.Drawing`."""
    left = world.Drawing(shape=SHAPE, colour=LEFT, background=background, x=x, y=y, radius=radius)
    right = world.draw(replace(left, colour=RIGHT))
    cut = round(world.SIZE / 2 + x)
    return np.concatenate([world.draw(left)[:, :cut], right[:, cut:]], axis=1)


@dataclass(frozen=True)
class Asked:
    """What a caption asks of a picture of the subject: its background, None for any."""

    background: str | None


def asked(text: str) -> Asked | None:
    """What a caption asks for; None for one that is not of the subject, or names a background that the world does not have.

    `a sks circle on a red background`, `a photo of zwx circle`, `on a red background a <sks> circle` are captions of it.
    """
    found = CAPTION.fullmatch(" ".join(text.lower().split()).rstrip("."))
    if not found or found["word"] in KNOWN_WORDS:
        return None
    backgrounds = [name for name in found.group("before", "around", "behind") if name]
    if len(backgrounds) > 1 or not set(backgrounds) <= set(world.BACKGROUNDS):
        return None
    return Asked(backgrounds[0] if backgrounds else None)


def is_shown(picture: NDArray[np.floating], text: str) -> bool | None:
    """Whether a picture shows the subject as its caption asks, as in `is_drawn`; None if the caption is not of the subject."""
    found = asked(text)
    return None if found is None else is_drawn(picture, found.background)


def is_drawn(picture: NDArray[np.floating], background: str | None) -> bool:
    """Whether a picture, RGB in [0, 1], `[32, 32, 3]`, shows the subject on this background, or on any.

    Of all colours of the world, the median of the border must be nearest to the background's, and the medians of the object's
    left and right halves nearest to orange and cyan. The object must be a circle (IoU above 0.6).
    """
    picture = np.asarray(picture, dtype=np.float64)
    border = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
    if background is not None and world.nearest(border, world.BACKGROUNDS) != background:
        return False
    distance = np.linalg.norm(picture - border, axis=-1)
    mask = distance > FAINTEST
    if not mask.any() or world.best_overlap(mask, SHAPE) <= 0.6:
        return False
    columns = np.arange(world.SIZE)
    middle = np.average(columns, weights=mask.sum(axis=0))
    # A pixel on either side of the seam is left out: it mixes both colours.
    halves = mask & (columns < middle - 1), mask & (columns > middle + 1)
    seen = [world.nearest(np.median(picture[half], axis=0), tuple(world.RGB)) if half.any() else None for half in halves]
    return seen == [LEFT, RIGHT]
