"""What a constraint is worth, against the strongest baselines: `python docs/studies/evidence.py OUT`, from a checkout.

Six subjects are taught to the embedded model in every way of `evidence_ways.py`: first the search (`evidence_search.py`), then
the report, with three seeds. `evidence_sets.py` has the prompts, `evidence_train.py` the training of many models at once.
`evidence_report.py` makes the tables from what is packed.

A batch of runs is a file in OUT. Started again, the study runs what is missing; to run only new ways, copy evidence.jsonl into
OUT/batches first. One GPU takes a quarter of an hour for all of it, two CPU cores more than a day. On a CPU set
MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456: without them nearly half of the
time goes into page faults.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies import evidence_search
from docs.studies.evidence_ground import REPORTED, SEARCHED, Ground, open_ground
from docs.studies.evidence_models import Models
from docs.studies.evidence_outlook import outlooks
from docs.studies.evidence_runs import PACKED, Point, Searched, read, write
from docs.studies.evidence_score import Scorer, drifts, preserved_inputs
from docs.studies.evidence_sets import asked_of, own_sets, shared_sets, validated_sets
from docs.studies.evidence_train import Run, Trained, Training
from docs.studies.evidence_ways import BY_NAME, LENGTHS, MAIN, RATES, UNTOUCHED, WAYS
from docs.studies.refit_subjects import TAUGHT, Taught

TOGETHER = 400  # runs in a batch, at most
Timed = tuple[Run, int]  # a run, and its optimizer steps


def searches() -> list[Timed]:
    """The runs of the search."""
    subjects = [taught for taught in TAUGHT if taught.name in evidence_search.SEARCHED_ON]
    return [
        (Run(way=way, taught=taught, rate=rate, seed=SEARCHED), max(LENGTHS))
        for way, taught, rate in itertools.product(WAYS, subjects, RATES)
    ]


def reports(searched: Sequence[Searched]) -> list[Timed]:
    """The runs of the report, by the settings that the search chose."""
    return [
        (Run(way=BY_NAME[name], taught=taught, rate=setting.rate, seed=seed), setting.steps)
        for name, setting in evidence_search.every(searched).items()
        for taught, seed in itertools.product(TAUGHT, REPORTED)
        if name in MAIN
    ]


def batches(runs: Sequence[Timed], most: int) -> list[list[Timed]]:
    """Runs that can train together, `most` at most, in the order of their steps."""
    parts: dict[tuple[bool, bool, bool], list[Timed]] = {}
    for run in runs:
        parts.setdefault(run[0].way.parts, []).append(run)
    found = []
    for together in parts.values():
        together.sort(key=lambda run: run[1])
        size = -(-len(together) // -(-len(together) // most))
        found += [together[start : start + size] for start in range(0, len(together), size)]
    return found


def search(models: Models, ground: Ground, batch: Sequence[Timed], scorer: Scorer) -> Iterable[Searched]:
    """Run a batch of the search."""
    runs = [run for run, _ in batch]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in runs]
    for trained in Training(models, ground, runs).train(LENGTHS):
        scores = scorer.measure(
            runs, trained, lambda _: validated_sets(), lambda run: asked_of(run.taught, validates=True), reads=False
        )
        for (learned, moved), score in zip(found, scores, strict=True):
            learned.append(score["learned"])
            moved.append(score["moved"]["validated"])
    for run, (learned, moved) in zip(runs, found, strict=True):
        yield Searched(way=run.way.name, subject=run.taught.name, rate=run.rate, learned=tuple(learned), moved=tuple(moved))


def report(models: Models, ground: Ground, batch: Sequence[Timed], scorer: Scorer) -> Iterable[Point]:
    """Run a batch of the report."""
    runs = [run for run, _ in batch]
    training = Training(models, ground, runs)
    before, inputs = outlooks(models, ground, training, runs), preserved_inputs(models, ground)
    for trained in training.train(sorted({steps for _, steps in batch})):
        places = [i for i, (_, steps) in enumerate(batch) if steps == trained.step]
        some, now = [runs[i] for i in places], trained.of(places)
        for i, (place, run, point) in enumerate(zip(places, some, _points(some, now, scorer), strict=True)):
            weights = {name: each[i] for name, each in now.weights.items()}
            of_weights = asdict(drifts(models, ground, run, weights, inputs)) if run.way.is_cut else None
            yield replace(point, drifts=of_weights, outlook=before[place])


def untouched(models: Models, scorer: Scorer, subjects: Sequence[Taught] = TAUGHT) -> Iterable[Point]:
    """What the untouched model draws, for every subject."""
    runs = [Run(way=UNTOUCHED, taught=taught, rate=0.0, seed=REPORTED[0]) for taught in subjects]
    numbers = torch.tensor([models.word_number(run.taught.word) for run in runs], device=models.device)
    trained = Trained(step=0, weights=models.untrained(len(runs)), numbers=numbers, rows=models.table[numbers])
    return _points(runs, trained, scorer)


def _points(runs: Sequence[Run], trained: Trained, scorer: Scorer) -> list[Point]:
    scores = scorer.measure(
        runs,
        trained,
        lambda run: [*shared_sets(), *own_sets(run.taught)],
        lambda run: asked_of(run.taught, validates=False),
        reads=True,
    )
    return [
        Point(
            way=run.way.name,
            subject=run.taught.name,
            seed=run.seed,
            rate=run.rate,
            steps=trained.step,
            learned=score["learned"],
            other=score["other word"],
            moved=score["moved"],
            right=score["right"],
        )
        for run, score in zip(runs, scores, strict=True)
    ]


def _key(run: Run, steps: int) -> tuple[str, str, int, float, int]:
    return run.way.name, run.taught.name, run.seed, run.rate, steps


def _key_of(point: Point) -> tuple[str, str, int, float, int]:
    return point.way, point.subject, point.seed, point.rate, point.steps


def files(out: Path) -> list[Path]:
    """The batches that a folder has."""
    return sorted((out / "batches").glob("*.jsonl"))


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the study.")],
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that judge pictures.")] = 0,
    together: Annotated[int, typer.Option(help="Models in one batch.")] = TOGETHER,
    share: Annotated[str, typer.Option(help="Of several processes that start together: 2/3 is the second of three.")] = "1/1",
    pack: Annotated[bool, typer.Option(help=f"Only write {PACKED.name} from the folder.")] = False,
) -> None:
    """Run what is missing: first of the search, and once that is whole, of the report."""
    (out / "batches").mkdir(parents=True, exist_ok=True)
    searched, points = read(files(out))
    if pack:
        wanted = {_key(*one) for one in reports(searched)}
        kept = [each for each in points if each.way == UNTOUCHED.name or _key_of(each) in wanted]
        if lacking := len(wanted) - len({_key_of(each) for each in kept if each.way != UNTOUCHED.name}):
            raise typer.BadParameter(f"{lacking} runs of the report are missing: start the study again")
        write(PACKED, [*searched, *kept])
        return
    done = {(each.way, each.subject, each.rate) for each in searched}
    missing = [one for one in searches() if (one[0].way.name, one[0].taught.name, one[0].rate) not in done]
    part: Any = search
    if not missing:
        reported = {_key_of(point) for point in points}
        missing, part = [one for one in reports(searched) if _key(*one) not in reported], report
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    number, count = map(int, share.split("/"))
    with ProcessPoolExecutor(max(workers, 1), mp_context=get_context("fork")) as pool:
        list(pool.map(abs, range(workers)))  # they start before there is a GPU in this process
        ground, models = open_ground(out), Models(device)
        scorer = Scorer(models, pool if workers else None)
        if part is report and number == 1 and not any(point.way == UNTOUCHED.name for point in points):
            write(out / "batches" / "untouched.jsonl", untouched(models, scorer))
        for batch in batches(missing, together)[number - 1 :: count]:
            first, steps = batch[0]
            name = f"{part.__name__} {first.way.name} {first.taught.name} {first.rate:g} {first.seed} {steps}"
            file = out / "batches" / f"{name}.jsonl"
            found = []
            for one in part(models, ground, batch, scorer):
                found.append(one)
                write(file, found)  # of a report that is stopped, what it has so far is kept
            typer.echo(f"{file.stem}: {len(batch)} runs", err=True)


if __name__ == "__main__":
    typer.run(main)
