"""Many edits of one model, on the embedded model: `python docs/studies/sequence_edits.py OUT`, from a checkout.

39 prompts with an unknown word are given the picture of a known one by every method of `edit`, at once and one by one, with
several seeds (words, colours, noise, held-out captions) and in several orders; `edit_ways.py` has the ways. The scores were fixed
before the runs:

- efficacy        share of 24 pictures of the edited prompts that show colour, shape and background of their targets exactly
- generalisation  the same of paraphrases: the same word and shape in other words, on another background
- specificity     share of 24 held-out captions that are still drawn exactly
- distance        mean squared distance of their latents to the untouched model's, over that of two seeds: 1 is another seed
- missing         of all edits together: norm(W' K1 - W K*) / norm(W K1 - W K*), W the untouched weights

and the rule of the search: of seven settings for each way, four values of one number and then four of the other, that with the
highest harmonic mean of efficacy, generalisation and specificity after 10 edits (ties: the least distance), with words, colours,
captions and noise that no reported score has seen.

OUT gets a file for each run and for each way's search. Started again, the study runs what is missing. Several processes may share
OUT.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.edit_pairs import Scales, Scores, edits, in_order
from docs.studies.edit_ways import NULL_SPACES, START, THRESHOLD, WAYS, Asked, Bench, Preserved, Way, open_texts
from docs.studies.refit import fresh
from docs.studies.sequence_report import geometric
from nullbooth_cli.editing.solve import Rows

COUNTS = (1, 2, 5, 10, 20, 39)
SEEDS, SEARCH_SEED, SEARCHED_AT = (0, 1, 2), 3, 10
BROWN, PURPLE = "#8c564b", "#5e3c99"
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


class Study:
    """The runs of the study in a folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with FileLock(folder / "texts.lock"):
            store = open_texts(folder / "texts.zarr")
        self._bench = Bench(fresh(), store)
        self._scales: dict[int, Scales] = {}

    def scales(self, seed: int) -> Scales:
        """The scales of a seed, on the untouched model."""
        if seed not in self._scales:
            self._bench.reset()
            self._scales[seed] = Scales(self._bench.pipe, seed, search=seed == SEARCH_SEED)
        return self._scales[seed]

    def search(self, way: Way) -> Iterator[dict[str, Any]]:
        """The scores of seven settings of a way: four values of one number, then of the other. Cost: 48 pictures for each."""
        made, scales = edits(SEARCH_SEED, reserved=False), self.scales(SEARCH_SEED)
        found: list[dict[str, Any]] = []
        for name, values in way.axes.items():
            around = best_of(found) if found else START
            for settings in [around | {name: value} for value in values]:
                if settings not in [each["settings"] for each in found]:
                    next(self._bench.play(way, settings, made, (SEARCHED_AT,)))
                    found.append({"settings": settings, **scales.measure(self._bench.pipe, made[:SEARCHED_AT])._asdict()})
        yield from found

    def run(self, way: Way, settings: dict[str, float], seed: int, order: int) -> Iterator[dict[str, Any]]:
        """A point after each of `COUNTS` edits."""
        made, scales = in_order(edits(seed), order), self.scales(seed)
        asked = self._bench.rows(made)
        for now in self._bench.play(way, settings, made, COUNTS):
            found = scales.measure(self._bench.pipe, made[: now.count])
            last = now.reports[-1]
            point = Point(
                way=way.name,
                seed=seed,
                order=order,
                count=now.count,
                **found._asdict(),
                missing=self._bench.missing(asked[: now.count], last.weights),
                newest=last.missing,
                null_dim=now.store.projector(self._bench.site).null_dim if THRESHOLD in settings else None,
            )
            yield asdict(point)

    def untouched(self, seed: int) -> Iterator[dict[str, Any]]:
        """What the model draws before any edit."""
        scales = self.scales(seed)
        self._bench.reset()
        yield asdict(Point(way=BASE.name, seed=seed, order=0, count=0, **scales.measure(self._bench.pipe, edits(seed))._asdict()))

    def room(self, seed: int) -> Iterator[dict[str, Any]]:
        """The room that is left after each of `COUNTS` edits, under each threshold of the search. No picture is drawn."""
        asked = self._bench.rows(in_order(edits(seed), seed))
        others = np.stack([each.keys[0] for each in self._bench.rows(edits(SEARCH_SEED, reserved=False))])
        for threshold, count in itertools.product(NULL_SPACES, COUNTS):
            yield asdict(
                Room(seed=seed, threshold=threshold, count=count, **_room(self._bench, threshold, asked[:count], others))
            )

    def once(self, name: str, make: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Run what has no file yet and no other process works at."""
        file = self._folder / "runs" / f"{name}.json"
        with contextlib.suppress(Timeout), FileLock(f"{file}.lock", timeout=0):
            if not file.exists():
                found = list(make())
                file.with_suffix(".partial").write_text(json.dumps(found, indent=1) + "\n")
                file.with_suffix(".partial").rename(file)
                typer.echo(f"{name}: {found[-1]}", err=True)


def _room(bench: Bench, threshold: float, asked: Sequence[Asked], others: Rows) -> dict[str, Any]:
    """rank, null_dim, left and energy; `others` `[N, D]` are the rows of edits that come next."""
    before = Preserved(bench.store, threshold).projector(bench.site)
    hard = {bench.site.name: np.concatenate([each.keys for each in asked])}
    after = Preserved(bench.store, threshold, [hard]).projector(bench.site)
    inside = np.square(np.linalg.svd(before.apply(np.stack([each.keys[0] for each in asked])), compute_uv=False))
    return {
        "rank": float(inside.sum() ** 2 / np.square(inside).sum()),
        "null_dim": before.null_dim,
        "left": after.null_dim,
        "energy": float(np.square(after.apply(others)).sum() / np.square(before.apply(others)).sum()),
    }


def best_of(tried: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The settings with the highest mean of the three shares, and of equal ones with the least distance."""
    best = max(tried, key=lambda each: (Scores(*(each[name] for name in Scores._fields)).overall, -each["distance"]))
    return dict(best["settings"])


def settings_of(way: Way, folder: Path) -> dict[str, float]:
    """What the search of a way found."""
    return best_of(json.loads((folder / "runs" / f"search {way.like or way.name}.json").read_text()))


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table: for each way and N, means over the runs, least to most in brackets; of `distance` a geometric mean."""
    lines = ["| way | N | efficacy | generalisation | specificity | distance | missing | runs |", f"|{' --- |' * 8}"]
    for way, count in itertools.product((BASE, *WAYS), (0, *COUNTS)):
        if not (found := [point for point in points if (point.way, point.count) == (way.name, count)]):
            continue
        cells = [spread([getattr(point, name) for point in found]) for name in ("efficacy", "generalisation", "specificity")]
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
    for threshold, count in itertools.product(NULL_SPACES, COUNTS):
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
    """Draw the four scores against N, a line for each way; returns the path."""
    from nullbooth_cli.report.plots.canvas import COLOURS, GREY, axes, figure, save

    colours = (*COLOURS, GREY, BROWN, PURPLE)

    made = figure(13, 7.5, "Many edits of one model")
    for number, name in enumerate(Scores._fields, start=1):
        drawn = axes(made, "edits", name if name != "distance" else "distance: 1 is another seed", (2, 2, number))
        drawn.set_xscale("log")
        drawn.set_xticks(COUNTS, labels=[str(count) for count in COUNTS])
        drawn.minorticks_off()
        for way, colour, mark in zip(WAYS, colours, "osD^vP*Xdp", strict=False):
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


def plan(seeds: Sequence[int], orders: int) -> list[tuple[int, int]]:
    """(seed, order) of all runs of a way, so that a table fills evenly: the first of each seed have orders of their own."""
    return [(seed, (i + shift) % orders) for shift in range(orders) for i, seed in enumerate(seeds)]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default 0, 1, 2.")] = None,
    orders: Annotated[int, typer.Option(help="How many orders of the edits of each seed.", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Only ways whose name has this text.")] = "",
    tables: Annotated[bool, typer.Option("--table", help="Only the tables and the picture of what is there.")] = False,
) -> None:
    """Run the study, or resume it; prints three tables."""
    chosen = [way for way in WAYS if only in way.name]
    if not tables:
        study = Study(out)
        for seed in seeds or SEEDS:
            study.once(f"untouched {seed}", partial(study.untouched, seed))
            study.once(f"room {seed}", partial(study.room, seed))
        for way in chosen:
            if way.like is None:
                study.once(f"search {way.name}", partial(study.search, way))
        for (seed, order), way in itertools.product(plan(seeds or SEEDS, orders), chosen):
            if (out / "runs" / f"search {way.like or way.name}.json").exists():
                study.once(f"{way.name} {seed} {order}", partial(study.run, way, settings_of(way, out), seed, order))
    names = [f"{way.name} {seed} {order}.json" for way in chosen for seed, order in plan(seeds or SEEDS, orders)]
    names += [f"untouched {seed}.json" for seed in seeds or SEEDS]
    points = [Point(**each) for name in names for each in _read(out, name)]
    rooms = [Room(**each) for seed in seeds or SEEDS for each in _read(out, f"room {seed}.json")]
    typer.echo("\n".join([*table(points), "", *room_table(rooms), "", *search_table(out)]))
    picture(points, out / "sequences-edits.png")


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "runs" / name
    return list(json.loads(file.read_text())) if file.exists() else []


if __name__ == "__main__":
    typer.run(main)
