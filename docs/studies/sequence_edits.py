"""Many edits of one model: `python docs/studies/sequence_edits.py OUT`, from a checkout, with `--world names` on a richer one.

39 prompts are given the picture of another one by every method of `edit`, at once and one by one, with several seeds (words,
targets, noise, held-out captions) and in several orders. In the embedded model's world the prompts have a word that it does not
know. In that of names (`names_world.py`, trained into OUT the first time) they have a name, which gets another meaning, and 20
other names are among the preserved prompts. `edit_ways.py` has the ways. The scores were fixed before the runs:

- efficacy         share of 24 pictures of the edited prompts that show colour, shape and background of their targets exactly
- generalisation   the same of paraphrases: the same thing in other words, on another background
- specificity      share of 24 held-out captions that are still drawn exactly
- preserved names  the same of 24 captions of names that are preserved, in other words and on other backgrounds
- other names      the same of names that are neither edited nor preserved
- distance         mean squared distance of the held-out captions' latents to the untouched model's, over that of two seeds
- missing          of all edits together: norm(W' K1 - W K*) / norm(W K1 - W K*), W the untouched weights

and the rule of the search: of seven settings for each way, four values of one number and then four of the other, that with the
highest harmonic mean of efficacy, generalisation and specificity (with names, the mean of its three parts) after 10 edits, 20 of
names (ties: the least distance), with words, targets, captions and noise that no reported score has seen.

OUT gets a file for each run and for each way's search. Started again, the study runs what is missing. Several processes may share
OUT.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.edit_pairs import SEARCH_SEED, Scales, ToyWorld, World, in_order
from docs.studies.edit_tables import BASE, COUNTS, Point, Room, best_of, picture, room_table, search_table, settings_of, table
from docs.studies.edit_ways import START, THRESHOLD, WAYS, Asked, Bench, Preserved, Way, open_texts
from docs.studies.names_world import NamesWorld
from docs.studies.refit import fresh
from nullbooth_cli.editing.solve import Rows

SEEDS = (0, 1, 2)
WORLDS: dict[str, World] = {"toy": ToyWorld(), "names": NamesWorld()}


class Study:
    """The runs of the study of a world, in a folder."""

    def __init__(self, folder: Path, world: World) -> None:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        self._folder, self._world = folder, world
        with FileLock(folder / "model.lock"):
            self._model = world.model(folder)
        self._pipe = fresh(self._model)
        self._benches: dict[str, Bench] = {}
        self._scales: dict[int, Scales] = {}

    def bench(self, seed: int) -> Bench:
        """The model as it was, and the store of a seed."""
        for bench in self._benches.values():
            bench.reset()
        place = self._folder / self._world.store(seed)
        if place.name not in self._benches:
            with FileLock(self._folder / "texts.lock"):
                store = open_texts(place, self._world.preserved(seed), self._model)
            self._benches[place.name] = Bench(self._pipe, store)
        return self._benches[place.name]

    def scales(self, seed: int) -> Scales:
        """The scales of a seed, on the untouched model."""
        if seed not in self._scales:
            self._scales[seed] = Scales(self.bench(seed).pipe, seed, self._world.names(seed))
        return self._scales[seed]

    def search(self, way: Way) -> Iterator[dict[str, Any]]:
        """The scores of seven settings of a way: four values of one number, then of the other. Cost: 48 pictures each, or 80."""
        made, scales = self._world.edits(SEARCH_SEED)[: self._world.searched_at], self.scales(SEARCH_SEED)
        bench = self.bench(SEARCH_SEED)
        found: list[dict[str, Any]] = []
        for name, usual in way.axes.items():
            around = best_of(found) if found else START
            values = self._world.thresholds if name == THRESHOLD else usual
            for settings in [around | {name: value} for value in values]:
                if settings not in [each["settings"] for each in found]:
                    next(bench.play(way, settings, made, (len(made),)))
                    found.append({"settings": settings, **scales.measure(bench.pipe, made)._asdict()})
        yield from found

    def run(self, way: Way, settings: dict[str, float], seed: int, order: int) -> Iterator[dict[str, Any]]:
        """A point after each of `COUNTS` edits."""
        made, scales = in_order(self._world.edits(seed), order), self.scales(seed)
        bench = self.bench(seed)
        asked = bench.rows(made)
        for now in bench.play(way, settings, made, COUNTS):
            found = scales.measure(bench.pipe, made[: now.count])
            last = now.reports[-1]
            point = Point(
                way=way.name,
                seed=seed,
                order=order,
                count=now.count,
                **found._asdict(),
                missing=bench.missing(asked[: now.count], last.weights),
                newest=last.missing,
                null_dim=now.store.projector(bench.site).null_dim if THRESHOLD in settings else None,
            )
            yield asdict(point)

    def untouched(self, seed: int) -> Iterator[dict[str, Any]]:
        """What the model draws before any edit."""
        found = self.scales(seed).measure(self.bench(seed).pipe, self._world.edits(seed))
        yield asdict(Point(way=BASE.name, seed=seed, order=0, count=0, **found._asdict()))

    def room(self, seed: int) -> Iterator[dict[str, Any]]:
        """The room that is left after each of `COUNTS` edits, under each threshold of the search. No picture is drawn."""
        bench = self.bench(seed)
        asked = bench.rows(in_order(self._world.edits(seed), seed))
        others = np.stack([each.keys[0] for each in bench.rows(self._world.edits(SEARCH_SEED))])
        for threshold, count in itertools.product(self._world.thresholds, COUNTS):
            yield asdict(Room(seed=seed, threshold=threshold, count=count, **_room(bench, threshold, asked[:count], others)))

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


def plan(seeds: Sequence[int], orders: int) -> list[tuple[int, int]]:
    """(seed, order) of all runs of a way, so that a table fills evenly: the first of each seed have orders of their own."""
    return [(seed, (i + shift) % orders) for shift in range(orders) for i, seed in enumerate(seeds)]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default 0, 1, 2.")] = None,
    orders: Annotated[int, typer.Option(help="How many orders of the edits of each seed.", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Only ways whose name has this text.")] = "",
    world: Annotated[str, typer.Option(help="toy or names.")] = "toy",
    tables: Annotated[bool, typer.Option("--table", help="Only the tables and the picture of what is there.")] = False,
) -> None:
    """Run the study, or resume it; prints three tables."""
    chosen = [way for way in WAYS if only in way.name]
    if not tables:
        study = Study(out, WORLDS[world])
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
