"""One subject after another, on the embedded model: `python docs/studies/sequence_subjects.py OUT`, from a checkout.

Four subjects are taught to one model, in several orders and with several seeds, each with a word of its own, 20 pictures and
batches of 8; `sequence_ways.py` has the ways. After every subject the model is scored. The scores were fixed before the runs:

- learned    of every subject so far: share of 24 pictures of it, on backgrounds that no taught picture has, that show all of it
- forgotten  as in docs/studies/forgetting.py, on 48 held-out captions: 1 is as different as another seed makes it
- accuracy   share of these captions whose colour, background and shape are all drawn right

and of `learned`, by the definitions of Low-Rank Continual Personalization (arXiv 2410.04891):

- average score   after N subjects, the mean over them
- forgetting      of a subject, the most that it had after any of its models less what it has now; the mean over the N, the last,
                  whose forgetting is zero, included

OUT gets a file for each model, its trained files, the stores, and a picture. Started again, the study runs what is missing.
Several processes may share OUT.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import Cut, cut_projectors
from docs.studies.forgetting import decode, draw_latents
from docs.studies.refit import PICTURES, fresh, share_drawn
from docs.studies.refit_subjects import IN_SEQUENCE, Taught
from docs.studies.sequence_report import Point, load_points, picture, room, table
from docs.studies.sequence_ways import WAYS, Way, assembled, constraint, remember, teach
from nullbooth_cli.api import OpenStore
from nullbooth_cli.store import Store
from nullbooth_cli.toy import score, world

# Rows of a square that is balanced for places and neighbours (Williams): three of them are the study.
ORDERS = ((0, 1, 2, 3), (1, 3, 0, 2), (3, 2, 1, 0), (2, 0, 3, 1))
SEEDS = (0, 1, 2)
CAPTIONS = 48
SEARCHED, SEARCHED_ON, SEARCH_SEED = (1e-3, 3e-3, 1e-2), (IN_SEQUENCE[0], IN_SEQUENCE[3]), 9


class Scales:
    """The captions that every model is measured on, with what the untouched model draws of them."""

    def __init__(self, pipe: Any) -> None:
        self.triples = score.held_out_triples(CAPTIONS)
        self.captions = [world.caption(world.Drawing(*triple)) for triple in self.triples]
        self.untouched = draw_latents(pipe, self.captions, 0)
        self.another_seed = float(np.square(draw_latents(pipe, self.captions, 1_000_000) - self.untouched).mean())

    def measure(self, pipe: Any, asked: Sequence[tuple[Taught, str]]) -> dict[str, Any]:
        """learned of each subject, asked for with its token; forgotten, accuracy. Cost: 48 pictures, 24 for each subject."""
        now = draw_latents(pipe, self.captions, 0)
        return {
            "learned": tuple(share_drawn(pipe, taught, token, PICTURES) for taught, token in asked),
            "forgotten": float(np.square(now - self.untouched).mean()) / self.another_seed,
            "accuracy": score.share_right(decode(pipe, now), self.triples),
        }


class Study:
    """The models of the study in a folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        for name in ("runs", "trained"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._folder = folder
        cut_projectors(folder, Cut("relative", 1e-4))  # collects
        self._base = OpenStore(Store.open(folder / "known.zarr"))
        self._scales = Scales(fresh())

    def play(self, way: Way, order: Sequence[Taught], seed: int) -> Iterator[Point]:
        """Teach subjects in this order; yields a point for every model that it makes. Ends where another process is at work."""
        for count in range(1, len(order) + 1):
            so_far = way.listed(order[:count])
            file = run_file(self._folder, way, so_far, seed)
            with contextlib.suppress(Timeout), FileLock(f"{file}.lock", timeout=0):
                if not file.exists():
                    point = self._point(way, so_far, seed)
                    file.with_suffix(".partial").write_text(json.dumps(asdict(point)) + "\n")
                    file.with_suffix(".partial").rename(file)
                    yield point
            if not file.exists():
                return

    def _point(self, way: Way, so_far: Sequence[Taught], seed: int) -> Point:
        room = None
        if way.goes_on:
            before = [(self._trained(way, so_far[: i + 1], seed), each) for i, each in enumerate(so_far)]
            room = teach(way, self._base, before[:-1], so_far[-1], seed=seed, folder=before[-1][0])
            if way.remembered:
                remember(way, before)
        else:
            before = [(self._trained(way, [each], seed), each) for each in so_far]
            for place, each in before:
                with FileLock(f"{place}.lock"):
                    if not place.exists():
                        teach(way, self._base, [], each, seed=seed, folder=place.with_suffix(".partial"))
                        place.with_suffix(".partial").rename(place)
        pipe, tokens = assembled(way, [place for place, _ in before])
        found = self._scales.measure(pipe, list(zip(so_far, tokens, strict=True)))
        of_constraint: dict[str, Any] = {} if room is None else asdict(room)
        if way.remembered:
            of_constraint["left"] = constraint(way, self._base, before).null_dim
        return Point(way=way.name, seed=seed, subjects=tuple(each.name for each in so_far), **found, **of_constraint)

    def _trained(self, way: Way, subjects: Sequence[Taught], seed: int) -> Path:
        return self._folder / "trained" / run_name(way, subjects, seed)


def run_name(way: Way, subjects: Sequence[Taught], seed: int) -> str:
    """The name of a model's files."""
    return f"{way.name} {seed} {'+'.join(each.name for each in subjects)}".replace(".", "p")


def run_file(folder: Path, way: Way, subjects: Sequence[Taught], seed: int) -> Path:
    """The file of a model's point."""
    return folder / "runs" / f"{run_name(way, subjects, seed)}.json"


def plan(seeds: Sequence[int], orders: int) -> list[tuple[int, tuple[Taught, ...]]]:
    """(seed, order) of all sequences, so that a table fills evenly: after three of them it has three seeds and three orders."""
    every = [tuple(IN_SEQUENCE[i] for i in order) for order in ORDERS[:orders]]
    return [(seed, every[(i + shift) % orders]) for shift in range(orders) for i, seed in enumerate(seeds)]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default 0, 1, 2.")] = None,
    orders: Annotated[int, typer.Option(help="How many orders.", min=1, max=len(ORDERS))] = 3,
    only: Annotated[str, typer.Option(help="Only ways whose name has this text.")] = "",
    tables: Annotated[bool, typer.Option("--table", help="Only the tables and the picture of what is there.")] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Learning rates: two subjects, each alone, with a seed of its own.")
    ] = False,
) -> None:
    """Run the study, or resume it; prints two tables."""
    chosen, sequences = [way for way in WAYS if only in way.name], plan(seeds or SEEDS, orders)
    if search:
        searched = [replace(way, name=f"{way.name}, rate {rate:g}", rate=rate) for way in chosen for rate in SEARCHED]
        chosen, sequences = searched, [(SEARCH_SEED, (each,)) for each in SEARCHED_ON]
    if not tables:
        study = Study(out)
        for (seed, order), way in itertools.product(sequences, chosen):
            for point in study.play(way, order, seed):
                typer.echo(f"{point}", err=True)
    points = load_points(out)
    typer.echo("\n".join([*table(points, chosen, sequences), "", *room(points, chosen, sequences)]))
    if not search:
        picture(points, chosen, sequences, out / "sequences-subjects.png")


if __name__ == "__main__":
    typer.run(main)
