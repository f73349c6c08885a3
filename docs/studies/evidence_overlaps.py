"""Exact scores of many pictures: the rules are those of `world.read` and `Taught.is_drawn`, their slow part runs on a GPU.

Nearly all of the time of a score is the search for the template that overlaps most with a mask. So every picture is judged twice:
first up to that search, which gives its mask, and again with the overlaps of all masks looked up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from docs.studies import refit_subjects
from nullbooth_cli.toy import world

CRESCENT = "crescent"
TEMPLATES = (*world.SHAPES, CRESCENT)
Mask = NDArray[np.bool_]
Overlaps = Mapping[str, float]  # of one mask with each template
Judge = Callable[[], bool]


class _Wanted(Exception):
    """A judge came to its search, with this mask."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask


def mask_of(judge: Judge) -> Mask | None:
    """The mask of which a judge wants the overlaps; None if it decides without any."""

    def stop(mask: Mask, shape: str = CRESCENT) -> float:
        raise _Wanted(mask)

    with _searching(stop):
        try:
            judge()
        except _Wanted as wanted:
            return wanted.mask
    return None


def judged(judge: Judge, overlaps: Overlaps) -> bool:
    """What a judge says, with the overlaps of its mask."""
    with _searching(lambda mask, shape=CRESCENT: overlaps[shape]):
        return bool(judge())


@contextmanager
def _searching(search: Callable[..., float]) -> Any:
    kept = world.best_overlap, refit_subjects._overlap_with_crescent
    world.best_overlap, refit_subjects._overlap_with_crescent = search, search
    try:
        yield
    finally:
        world.best_overlap, refit_subjects._overlap_with_crescent = kept


def overlaps_of(masks: Sequence[Mask], device: torch.device | str, together: int = 64) -> list[Overlaps]:
    """The largest overlap of each mask `[32, 32]`, with something in it, with every template, by the searches of the judges."""
    found: list[Overlaps] = []
    for start in range(0, len(masks), together):
        batch = torch.from_numpy(np.stack(masks[start : start + together])).to(device)
        boxes = np.array([_box(mask) for mask in masks[start : start + together]])
        columns = [_best(batch, boxes, name).tolist() for name in TEMPLATES]
        found += [dict(zip(TEMPLATES, row, strict=True)) for row in zip(*columns, strict=True)]
    return found


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """First and last column, first and last row."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return columns[0], columns[-1], rows[0], rows[-1]


def _best(masks: torch.Tensor, boxes: NDArray[np.int_], name: str) -> torch.Tensor:
    left, right, top, bottom = boxes.T
    middle_x, middle_y = (left + right + 1) / 2, (top + bottom + 1) / 2
    if name == CRESCENT:
        radii = ((bottom - top + 1) / 2)[:, None] * np.linspace(0.85, 1.15, 7)
        x = left[:, None, None] + radii[..., None] + np.linspace(-1.5, 1.5, 7)
        places = [(radii[..., None], x, middle_y[:, None, None])]
    else:
        half = np.maximum(right - left + 1, bottom - top + 1) / 2
        radii = half[:, None] * np.linspace(0.9, 1.25, 8)
        down = np.linspace(-0.5, 0.25 * radii, 5, axis=-1)
        places = [(radii[..., None], middle_x[:, None, None] + dx, middle_y[:, None, None] + down) for dx in (-0.5, 0.0, 0.5)]
    best = [_overlap(masks, name, *(np.broadcast_arrays(*place))).flatten(1).amax(1) for place in places]
    return torch.stack(best).amax(0)


def _overlap(masks: torch.Tensor, name: str, radius: Any, x: Any, y: Any) -> torch.Tensor:
    """Intersection over union `[N, ...]` of masks `[N, h, w]` with templates of these radii and places, `[N, ...]` each."""
    radius, x, y = (torch.from_numpy(np.ascontiguousarray(each)).to(masks.device)[..., None, None] for each in (radius, x, y))
    axis = torch.arange(world.SIZE, device=masks.device) + 0.5
    template = _inside(name, (axis - x) / radius, (axis[:, None] - y) / radius)
    mask = masks[:, None, None]
    both, either = (template & mask).sum((-1, -2)), (template | mask).sum((-1, -2))
    return both / either.double()


def _inside(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`world.inside`, and the crescent of `refit_subjects`, for tensors."""
    if name == "square":
        return torch.maximum(x.abs(), y.abs()) <= 0.85
    if name == "cross":
        return (torch.minimum(x.abs(), y.abs()) <= 0.32) & (torch.maximum(x.abs(), y.abs()) <= 1.0)
    if name == "triangle":
        return (y <= 0.6) & (math.sqrt(3.0) * x.abs() - 1.08 <= y)
    r = torch.hypot(x, y)
    if name == "circle":
        return r <= 1.0
    if name == "ring":
        return (r <= 1.0) & (r >= 0.55)
    if name == CRESCENT:
        return (r <= 1.0) & (torch.hypot(x - 0.5, y) > 0.8)
    inner, wedge = 0.42, math.pi / 5
    angle = ((torch.atan2(x, -y) + wedge) % (2 * wedge) - wedge).abs()
    px, py = r * torch.cos(angle), r * torch.sin(angle)
    ex, ey = inner * math.cos(wedge) - 1.0, inner * math.sin(wedge)
    return (px - 1.0) * ey - py * ex <= 0.0
