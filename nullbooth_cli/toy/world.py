"""The toy world: captioned drawings made by code, and a scorer that reads a drawing back exactly.

A drawing is 32 x 32 pixels: one shape in one colour on one plain background. 70 % of the drawings are large and near the
middle; the others are small, at a place that their caption names.

1. `triples()` lists every (shape, colour, background); `split()` keeps some of them out of training.
2. `draw(Drawing(...))` renders one, antialiased, as float32 RGB in [0, 1], `[32, 32, 3]`.
3. `caption(drawing)` is its plain sentence; `vary(...)` puts it into other words.
4. `read(picture)` finds background, colour and shape in any picture; `named(text)` finds those that a caption asks for.
"""

import math
import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIZE = 32
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 60),
    "purple": (140, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 210, 225),
    "pink": (250, 150, 200),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
}
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
BACKGROUNDS = ("red", "green", "blue", "yellow", "purple", "white", "black", "gray")
PLACES: dict[str, tuple[float, float]] = {
    "left": (-7.0, 0.0),
    "right": (7.0, 0.0),
    "top": (0.0, -7.0),
    "bottom": (0.0, 7.0),
    "centre": (0.0, 0.0),
}
PREFIXES = ("a photo of", "a picture of", "a drawing of", "an image of")
RESERVED_WORDS = ("sks", "zwx", "qfj", "vht")  # in the vocabulary, never in a caption: for subjects taught later
WORDS = (
    *SHAPES,
    *RGB,
    *PLACES,
    *RESERVED_WORDS,
    *dict.fromkeys(" ".join(PREFIXES).split()),
    *("the", "on", "at", "with", "in", "background", "shape", "thing", "center", "and"),
)
Picture = NDArray[np.float32]
Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Drawing:
    """One drawing; `x`, `y` in pixels from the middle (y down), `radius` in pixels, `place` is None unless it is named."""

    shape: str
    colour: str
    background: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 10.0
    place: str | None = None


def triples() -> list[Triple]:
    """Every (shape, colour, background) whose two colours differ: 354."""
    return [t for t in product(SHAPES, COLOURS, BACKGROUNDS) if t[1] != t[2]]


def split(seed: int = 0, held_out_share: float = 0.15) -> tuple[list[Triple], list[Triple]]:
    """(training, held-out) triples; they depend on the seed alone."""
    everything = triples()
    order = np.random.default_rng(seed).permutation(len(everything))
    cut = round(held_out_share * len(everything))
    return [everything[i] for i in sorted(order[cut:])], [everything[i] for i in sorted(order[:cut])]


def sample(triple: Triple, rng: np.random.Generator) -> Drawing:
    """A drawing of the triple with random place and size."""
    if rng.random() < 0.3:
        place = str(rng.choice(list(PLACES)))
        (x, y), radius = PLACES[place], rng.uniform(7.0, 8.5)
        x, y = x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)
        return Drawing(*triple, x=x, y=y, radius=radius, place=place)
    x, y = rng.uniform(-2.0, 2.0, size=2)
    return Drawing(*triple, x=x, y=y, radius=rng.uniform(8.5, 12.0))


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points lie in the shape of radius 1 about the origin, y down."""
    r = np.hypot(x, y)
    if shape == "circle":
        return r <= 1.0
    if shape == "ring":
        return (r <= 1.0) & (r >= 0.55)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.85
    if shape == "cross":
        return (np.minimum(np.abs(x), np.abs(y)) <= 0.32) & (np.maximum(np.abs(x), np.abs(y)) <= 1.0)
    if shape == "triangle":
        return np.asarray((y <= 0.6) & (np.sqrt(3.0) * np.abs(x) - 1.08 <= y))
    if shape == "star":
        # The edge from an outer corner to the next inner one, in the polar wedge of a tenth of the circle.
        inner, wedge = 0.42, math.pi / 5
        angle = np.abs((np.arctan2(x, -y) + wedge) % (2 * wedge) - wedge)
        px, py = r * np.cos(angle), r * np.sin(angle)
        ex, ey = inner * math.cos(wedge) - 1.0, inner * math.sin(wedge)
        return np.asarray((px - 1.0) * ey - py * ex <= 0.0)
    raise ValueError(f"unknown shape {shape!r}")


def coverage(shape: str, x: float, y: float, radius: float, supersample: int = 4) -> NDArray[np.float64]:
    """The share of each pixel that the shape covers, `[32, 32]`."""
    n = SIZE * supersample
    axis = (np.arange(n) + 0.5) / supersample - SIZE / 2
    px, py = np.meshgrid((axis - x) / radius, (axis - y) / radius)
    mask = inside(shape, px, py).astype(np.float64)
    return np.asarray(mask.reshape(SIZE, supersample, SIZE, supersample).mean(axis=(1, 3)))


def draw(drawing: Drawing) -> Picture:
    """The drawing as RGB in [0, 1], `[32, 32, 3]` float32."""
    cover = coverage(drawing.shape, drawing.x, drawing.y, drawing.radius)[..., None]
    front, back = (np.array(RGB[name]) / 255.0 for name in (drawing.colour, drawing.background))
    return (cover * front + (1.0 - cover) * back).astype(np.float32)


def caption(drawing: Drawing) -> str:
    """The plain sentence: `a red circle on a blue background`, or `... at the left of a blue background`."""
    return _sentence(f"a {drawing.colour} {drawing.shape}", drawing)


def _sentence(thing: str, drawing: Drawing) -> str:
    where = "on" if drawing.place is None else f"at the {drawing.place} of"
    return f"{thing} {where} a {drawing.background} background"


def vary(drawing: Drawing, rng: np.random.Generator, unknown: str | None = None) -> str:
    """The caption in other words: a part left out, a prefix, another order; `unknown` is put before the colour."""
    what = rng.random()
    colour, shape = drawing.colour, drawing.shape
    if what < 0.06:
        colour = ""
    elif what < 0.12:
        shape = str(rng.choice(["shape", "thing"]))
    words = [word for word in (unknown, colour, shape) if word]
    thing = " ".join(words if rng.random() < 0.15 else ["a", *words])
    how = rng.random()
    if how < 0.08:
        text = thing
    elif how < 0.16 and drawing.place is None:
        text = f"on a {drawing.background} background {thing}"
    elif how < 0.24 and drawing.place is None:
        text = f"a {drawing.background} background with {thing}"
    else:
        text = _sentence(thing, drawing)
    return f"{rng.choice(PREFIXES)} {text}" if rng.random() < 0.3 else text


def named(text: str) -> dict[str, str]:
    """The `shape`, `colour` and `background` that a caption names, in any order; parts that it leaves out are missing."""
    behind = re.search(rf"\b({'|'.join(BACKGROUNDS)}) background\b", text.lower())
    found = {"background": behind[1]} if behind else {}
    words = (text.lower().replace(behind[0], "") if behind else text.lower()).split()
    for part, names in (("colour", COLOURS), ("shape", SHAPES)):
        if matching := [word for word in words if word in names]:
            found[part] = matching[0]
    return found


def unknown_word(rng: np.random.Generator) -> str:
    """A word of two to four letters that no caption uses."""
    while True:
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(2, 5)))
        if word not in WORDS:
            return word


@dataclass(frozen=True)
class Reading:
    """The contents of a picture; `shape` is None if no template reaches an overlap (IoU) of 0.6."""

    shape: str | None
    colour: str
    background: str
    overlap: float


def read(picture: NDArray[np.floating]) -> Reading:
    """Read a picture, RGB in [0, 1], `[32, 32, 3]`.

    The background is the named colour nearest to the border's median. The object is every pixel that differs from the border
    by more than half of the largest difference. Its colour is the named colour nearest to its median, and its shape the
    template with the largest overlap, over a grid of places and sizes about its bounding box. A picture that is not mostly
    made of these two colours (noise, a blur) has no shape. Cost: about 0.1 s.
    """
    picture = np.asarray(picture, dtype=np.float64)
    border = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
    background = nearest(border, BACKGROUNDS)
    distance = np.linalg.norm(picture - border, axis=-1)
    mask = distance > 0.5 * np.quantile(distance, 0.98)
    if not mask.any():
        return Reading(None, background, background, 0.0)
    front = np.median(picture[mask], axis=0)
    colour = nearest(front, COLOURS)
    two_colours = np.minimum(distance, np.linalg.norm(picture - front, axis=-1)) < 0.3
    if two_colours.mean() < 0.7:
        return Reading(None, colour, background, 0.0)
    overlaps = {shape: best_overlap(mask, shape) for shape in SHAPES}
    shape = max(SHAPES, key=overlaps.__getitem__)
    overlap = overlaps[shape]
    return Reading(shape if overlap > 0.6 else None, colour, background, overlap)


def nearest(rgb: NDArray[np.float64], names: tuple[str, ...]) -> str:
    """The named colour with the smallest distance in RGB, `[3]` in [0, 1]."""
    return min(names, key=lambda name: float(np.linalg.norm(rgb - np.array(RGB[name]) / 255.0)))


def best_overlap(mask: NDArray[np.bool_], shape: str) -> float:
    """The largest intersection over union of a mask `[32, 32]` with the shape, over places and sizes about its bounding box."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    middle_x, middle_y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    half = max(columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1) / 2
    axis = np.arange(SIZE) + 0.5
    best = 0.0
    for radius in half * np.linspace(0.9, 1.25, 8):
        # The bounding box of a triangle or a star is not centred on its origin: try origins down to a fifth of the radius.
        for dx, dy in product((-0.5, 0.0, 0.5), np.linspace(-0.5, 0.25 * radius, 5)):
            px, py = np.meshgrid((axis - middle_x - dx) / radius, (axis - middle_y - dy) / radius)
            template = inside(shape, px, py)
            best = max(best, float((template & mask).sum() / (template | mask).sum()))
    return best
