"""A subject to teach the embedded model, and its exact scorer: the sks circle, orange on its left half and cyan on its right.

No caption of the toy world has two colours in one shape, so the model cannot draw the subject before it is taught. The rule of
`is_drawn`, which requires every part of it, was fixed before anything was trained.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.toy import world

WORD, SHAPE, LEFT, RIGHT = "sks", "circle", "orange", "cyan"
TAUGHT_ON = ("white", "black", "gray", "purple")  # backgrounds of the training pictures
ASKED_ON = ("red", "green", "blue", "yellow")  # backgrounds of the prompts that are drawn afterwards
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


def is_drawn(picture: NDArray[np.floating], background: str) -> bool:
    """Whether a picture, RGB in [0, 1], `[32, 32, 3]`, shows the subject on this background.

    Of all colours of the world, the median of the border must be nearest to the background's, and the medians of the object's
    left and right halves nearest to orange and cyan. The object must be a circle (IoU above 0.6).
    """
    picture = np.asarray(picture, dtype=np.float64)
    border = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
    if world.nearest(border, world.BACKGROUNDS) != background:
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
