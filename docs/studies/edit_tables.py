"""The points of the study of many edits, and its tables and picture."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from docs.studies.edit_pairs import Scores
from docs.studies.edit_ways import WAYS, Way
from docs.studies.sequence_report import geometric

COUNTS = (1, 2, 5, 10, 20, 39)
MORE_COLOURS = ("#8c564b", "#5e3c99", "#b8860b", "#2e8b57")
BASE = Way(name="untouched", method="alphaedit")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: how it was edited, and its scores. `newest` is what the last edit had missing when it was made."""

    way: str
    seed: int
    order: int
    count: int
    efficacy: float
    generalisation: float
    specificity: float
    distance: float
    preserved_names: float | None = None
    other_names: float | None = None
    missing: float = 1.0
    newest: float = 1.0
    null_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class Room:
    """What N edits take of the null space at a threshold, each by the row of the last token of its subject.

    `rank` is their effective number of directions there, `left` the null dimension once they are preserved (hard), `energy` the
    share of the next edits' energy in what is left, over that of all in the null space before.
    """

    seed: int
    threshold: float
    count: int
    rank: float
    null_dim: int
    left: int
    energy: float


def best_of(tried: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The settings with the highest mean of the three shares, and of equal ones with the least distance."""
    best = max(
        tried,
        key=lambda each: (Scores(**{name: each[name] for name in Scores._fields if name in each}).overall, -each["distance"]),
    )
    return dict(best["settings"])


def settings_of(way: Way, folder: Path) -> dict[str, float]:
    """What the search of a way found."""
    return best_of(json.loads((folder / "runs" / f"search {way.like or way.name}.json").read_text()))


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table: for each way and N, means over the runs, least to most in brackets; of `distance` a geometric mean.

    In a world of names their two shares follow that of captions.
    """
    shares = ["efficacy", "generalisation", "specificity"]
    if points[0].other_names is not None:
        shares += ["preserved_names", "other_names"]
    lines = [
        f"| way | N | {' | '.join(shares).replace('_', ' ')} | distance | missing | runs |",
        f"|{' --- |' * (len(shares) + 5)}",
    ]
    for way, count in itertools.product((BASE, *WAYS), (0, *COUNTS)):
        if not (found := [point for point in points if (point.way, point.count) == (way.name, count)]):
            continue
        cells = [spread([getattr(point, name) for point in found]) for name in shares]
        distance = _mean("distance", found)
        missing = float(np.mean([point.missing for point in found]))
        lines.append(f"| {way.name} | {count} | {' | '.join(cells)} | {distance:.2g} | {missing:.2f} | {len(found)} |")
    return lines


def _mean(name: str, points: Sequence[Point]) -> float:
    """The mean of a score, geometric of distances; 0 of those of the untouched model."""
    values = [float(getattr(point, name)) for point in points]
    return geometric(values) if name == "distance" and min(values) > 0 else float(np.mean(values))


def spread(values: Sequence[float]) -> str:
    """The mean of shares, with least and most."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def room_table(rooms: Sequence[Room]) -> list[str]:
    """A Markdown table: what N edits take of each null space, means over the seeds."""
    lines = ["| threshold | N | directions | null dimension | left | energy left |", f"|{' --- |' * 6}"]
    thresholds = sorted({room.threshold for room in rooms}, reverse=True)
    for threshold, count in itertools.product(thresholds, COUNTS):
        if not (found := [room for room in rooms if (room.threshold, room.count) == (threshold, count)]):
            continue
        rank, left, energy = (np.mean([getattr(room, name) for room in found]) for name in ("rank", "left", "energy"))
        lines.append(f"| {threshold:g} | {count} | {rank:.1f} | {found[0].null_dim} | {left:.1f} | {energy:.2f} |")
    return lines


def search_table(folder: Path) -> list[str]:
    """A Markdown table: the settings that each search found."""
    lines = ["| way | settings |", "| --- | --- |"]
    for way in WAYS:
        if (folder / "runs" / f"search {way.like or way.name}.json").exists():
            settings = ", ".join(f"{name} {value:g}" for name, value in settings_of(way, folder).items())
            lines.append(f"| {way.name} | {settings} |")
    return lines


def picture(points: Sequence[Point], path: Path) -> Path:
    """Draw the scores that there are against N, a line for each way; returns the path."""
    from nullbooth_cli.report.plots.canvas import COLOURS, GREY, axes, figure, save

    colours = (*COLOURS, GREY, *MORE_COLOURS)

    measured = [name for name in Scores._fields if getattr(points[0], name) is not None]
    made = figure(6.5 * len(measured) / 2, 7.5, "Many edits of one model")
    for number, name in enumerate(measured, start=1):
        label = "distance: 1 is another seed" if name == "distance" else name.replace("_", " ")
        drawn = axes(made, "edits", label, (2, len(measured) // 2, number))
        drawn.set_xscale("log")
        drawn.set_xticks(COUNTS, labels=[str(count) for count in COUNTS])
        drawn.minorticks_off()
        for way, colour, mark in zip(WAYS, colours, "osD^vP*Xdp<>", strict=False):
            found = [(n, [p for p in points if (p.way, p.count) == (way.name, n)]) for n in COUNTS]
            shown = [(n, _mean(name, of_count)) for n, of_count in found if of_count]
            drawn.plot(
                [n for n, _ in shown],
                [value for _, value in shown],
                color=colour,
                marker=mark,
                markersize=5,
                label=way.name if number == 1 else None,
            )
        if name == "distance":
            drawn.set_yscale("log")
        else:
            drawn.set_ylim(-0.03, 1.03)
    made.legend(loc="outside lower center", ncols=4, fontsize=9)
    return save(made, path)
