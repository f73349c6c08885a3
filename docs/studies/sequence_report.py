"""What the study of one subject after another says: its tables and its picture, from the points of its models.

Average score and forgetting are defined as in Low-Rank Continual Personalization (arXiv 2410.04891).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from docs.studies.refit_subjects import Taught
from docs.studies.sequence_ways import Way

Sequences = Sequence[tuple[int, Sequence[Taught]]]  # (seed, order) of each
MORE = ("#8c564b", "#999999")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: the subjects that it was taught, and its scores.

    `null_dim`, `ratio` and `drift` are those of the constraint under which the last subject was taught, `left` is the null
    dimension that remembering it left.
    """

    way: str
    seed: int
    subjects: tuple[str, ...]
    learned: tuple[float, ...]
    forgotten: float
    accuracy: float
    null_dim: int | None = None
    ratio: float | None = None
    drift: float | None = None
    left: int | None = None


@dataclass(frozen=True)
class Played:
    """The models of one sequence after 1, 2, ... subjects; `learned` has of each the score of every subject so far, in order."""

    models: tuple[Point, ...]
    learned: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, points: Sequence[Point], way: Way, seed: int, order: Sequence[Taught]) -> "Played":
        """As far as there are points."""
        by_name = {(point.way, point.seed, point.subjects): point for point in points}
        models, learned = [], []
        for count in range(1, len(order) + 1):
            point = by_name.get((way.name, seed, tuple(each.name for each in way.listed(order[:count]))))
            if point is None:
                break
            of = dict(zip(point.subjects, point.learned, strict=True))
            models.append(point)
            learned.append(tuple(of[each.name] for each in order[:count]))
        return cls(tuple(models), tuple(learned))

    def first(self, count: int) -> "Played":
        """The same after `count` subjects."""
        return Played(self.models[:count], self.learned[:count])

    @property
    def average(self) -> float:
        """The average score: the mean over all subjects of what they have at the end."""
        return float(np.mean(self.learned[-1]))

    @property
    def forgetting(self) -> float:
        """The most that a subject had of any model less what it has at the end; the mean over all, the last with its zero."""
        columns = zip(*(row + (0.0,) * (len(self.learned) - len(row)) for row in self.learned), strict=True)
        return float(np.mean([max(column) - column[-1] for column in columns]))


def load_points(folder: Path) -> list[Point]:
    """All points in a folder."""
    found = [json.loads(file.read_text()) for file in sorted((folder / "runs").glob("*.json"))]
    return [Point(**{**each, "subjects": tuple(each["subjects"]), "learned": tuple(each["learned"])}) for each in found]


def by_count(points: Sequence[Point], way: Way, sequences: Sequences) -> Iterator[tuple[int, list[Played]]]:
    """(N, the sequences of (seed, order) that have a model after N subjects, up to that one), for N = 1, 2, ..."""
    every = [Played.of(points, way, seed, order) for seed, order in sequences]
    for count in range(1, max((len(played.models) for played in every), default=0) + 1):
        yield count, [played.first(count) for played in every if len(played.models) >= count]


def table(points: Sequence[Point], ways: Sequence[Way], sequences: Sequences) -> list[str]:
    """A Markdown table: for each way and number of subjects, means over the sequences that got so far, least to most in brackets.

    Of `forgotten` the mean is geometric. `first` and `newest` are what the subjects have that were taught first and last.
    """
    lines = ["| way | subjects | average score | forgetting | first | newest | forgotten | captions right | sequences |"]
    lines += [f"|{' --- |' * 9}"]
    for way in ways:
        for count, found in by_count(points, way, sequences):
            average = [played.average for played in found]
            forgotten = [played.models[-1].forgotten for played in found]
            cells = [
                f"{np.mean(average):.2f} ({min(average):.2f} to {max(average):.2f})",
                f"{np.mean([played.forgetting for played in found]):.2f}",
                f"{np.mean([played.learned[-1][0] for played in found]):.2f}",
                f"{np.mean([played.learned[-1][-1] for played in found]):.2f}",
                f"{geometric(forgotten):.2g} ({min(forgotten):.2g} to {max(forgotten):.2g})",
                f"{np.mean([played.models[-1].accuracy for played in found]):.2f}",
                str(len(found)),
            ]
            lines.append(f"| {way.name} | {count} | {' | '.join(cells)} |")
    return lines


def room(points: Sequence[Point], ways: Sequence[Way], sequences: Sequences) -> list[str]:
    """A Markdown table: the room that a constraint left for each subject, and what became of it: means, least to most."""
    lines = [
        "| constraint | subject | null dimension | energy ratio | learned when new | null dimension left |",
        f"|{' --- |' * 6}",
    ]
    for way in ways:
        for count, found in by_count(points, way, sequences) if way.remembered else ():
            last = [played.models[-1] for played in found]
            cells = [
                spread([float(point.null_dim or 0) for point in last], ".0f"),
                spread([point.ratio or 0.0 for point in last], ".1f"),
            ]
            cells += [spread([played.learned[-1][-1] for played in found], ".2f")]
            cells += [spread([float(point.left or 0) for point in last], ".0f")]
            lines.append(f"| {way.name} | {count} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    """The mean of values, with least and most."""
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def geometric(values: Sequence[float]) -> float:
    """The geometric mean of positive values."""
    return float(np.exp(np.mean(np.log(values))))


def picture(points: Sequence[Point], ways: Sequence[Way], sequences: Sequences, path: Path) -> Path:
    """Draw average score and forgotten after each subject, and the room that is left, dimension and energy; returns the path."""
    from nullbooth_cli.report.plots.canvas import COLOURS, axes, figure, save

    made = figure(13, 7.5, "One subject after another")
    scores = axes(made, "subjects", "average score", (2, 2, 1))
    forgotten = axes(made, "subjects", "forgotten: 1 is another seed", (2, 2, 2))
    forgotten.set_yscale("log")
    dimension = axes(made, "tasks remembered", "null dimension, of 96", (2, 2, 3))
    energy = axes(made, "tasks remembered", "energy ratio of the next subject", (2, 2, 4))
    for way, colour, mark in zip(ways, (*COLOURS, *MORE), "osD^vP*Xh", strict=False):
        found = dict(by_count(points, way, sequences))
        style: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.4}
        scores.plot([*found], [np.mean([each.average for each in played]) for played in found.values()], label=way.name, **style)
        forgotten.plot(
            [*found], [geometric([each.models[-1].forgotten for each in played]) for played in found.values()], **style
        )
        if way.remembered and found:
            ends = [[each.models[-1] for each in played] for played in found.values()]
            dims = [float(ends[0][0].null_dim or 0), *(float(np.mean([end.left or 0 for end in each])) for each in ends)]
            dimension.plot([*range(len(dims))], dims, **style)
            energy.plot([*range(len(ends))], [np.mean([end.ratio or 0.0 for end in each]) for each in ends], **style)
    most = max((len(point.subjects) for point in points), default=0)
    for drawn in (scores, dimension, energy):
        drawn.set_ylim(bottom=0)
    for drawn in (scores, forgotten, dimension, energy):
        drawn.set_xticks(range(drawn in (scores, forgotten), most + 1))
    made.legend(loc="outside lower center", ncols=4, fontsize=9)
    return save(made, path)
