"""A concept erased from its word alone, on the embedded model: `python docs/studies/erase_words.py OUT`, from a checkout.

OUT is that of `sequence_edits.py`, whose searches say what each method is set to. "star" and "orange" are erased, alone and in
templates (`pairs_around`), and "star" is turned into "circle". The preserved prompts are those that do not name the concept.
The scores were fixed before the runs:

- shown        share of 24 pictures that still show the concept, where the caption names it
- specificity  share of 24 captions without the concept that are drawn exactly
- rest         share of the 24 pictures of captions with the concept in which all else is right

OUT gets a file for each run. Started again, the study runs what is missing.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import PROMPTS
from docs.studies.edit_pairs import STEPS
from docs.studies.edit_tables import settings_of
from docs.studies.edit_ways import THRESHOLD, WAYS, Bench, Preserved, Way, open_texts
from docs.studies.forgetting import GUIDANCE
from docs.studies.refit import fresh
from nullbooth_cli.editing.around import pairs_around
from nullbooth_cli.editing.edit import edit
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import score, world

ERASED = (("star", ""), ("orange", ""), ("star", "circle"))
AT_ONCE = tuple(way for way in WAYS if way.after is None and way.like is None)
PICTURES, SEED = 24, 700_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model, and its scores; `way` is "untouched" for none."""

    concept: str
    to: str
    way: str
    shown: float
    specificity: float
    rest: float


def measure(pipe: Any, concept: str) -> dict[str, float]:
    """shown, specificity and rest of a model. Cost: 48 pictures."""
    order = np.random.default_rng(0).permutation(len(world.triples()))
    every = [world.triples()[i] for i in order]
    having, without = ([triple for triple in every if (concept in triple[:2]) is has][:PICTURES] for has in (True, False))
    of_concept = [_found(reading, triple) for reading, triple in zip(_read(pipe, having, SEED), having, strict=True)]
    others = [_found(reading, triple) for reading, triple in zip(_read(pipe, without, SEED + 1_000), without, strict=True)]
    place = 0 if concept in world.SHAPES else 1
    return {
        "shown": float(np.mean([each[place] for each in of_concept])),
        "specificity": float(np.mean([all(each) for each in others])),
        "rest": float(np.mean([all(right for i, right in enumerate(each) if i != place) for each in of_concept])),
    }


def _read(pipe: Any, triples: list[world.Triple], seed: int) -> list[world.Reading]:
    texts = [world.caption(world.Drawing(*triple)) for triple in triples]
    return [world.read(drawn) for drawn in score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=seed)]


def _found(reading: world.Reading, triple: world.Triple) -> tuple[bool, bool, bool]:
    return (reading.shape == triple[0], reading.colour == triple[1], reading.background == triple[2])


def run(pipe: Any, folder: Path, way: Way | None, concept: str, to: str) -> Point:
    """Erase a concept in one way, score, and put the model back; without a way only score."""
    texts = [prompt.text for prompt in load_prompts(str(PROMPTS)) if concept not in prompt.text.split()]
    bench = Bench(pipe, open_texts(folder / f"without_{concept}.zarr", texts))
    if way is not None:
        numbers = settings_of(way, folder)
        store = Preserved(bench.store, numbers.get(THRESHOLD, 1.0))
        edit(pipe, store, pairs_around(concept, to), **way.settings(numbers))
    found = measure(pipe, concept)
    bench.reset()
    return Point(concept=concept, to=to, way="untouched" if way is None else way.name, **found)


def table(points: list[Point]) -> list[str]:
    """A Markdown table."""
    lines = ["| erased | way | still shown | all else there | specificity |", f"|{' --- |' * 5}"]
    for each in points:
        erased = f"{each.concept}, to {each.to}" if each.to else each.concept
        lines.append(f"| {erased} | {each.way} | {each.shown:.2f} | {each.rest:.2f} | {each.specificity:.2f} |")
    return lines


def main(out: Annotated[Path, typer.Argument(help="Folder of sequence_edits.py, with its searches.")]) -> None:
    """Run the study, or resume it; prints a table."""
    pipe, points = fresh(), []
    for concept, to in ERASED:
        for way in (None, *AT_ONCE):
            file = out / "runs" / f"erase {concept} {to or 'nothing'} {way.name if way else 'untouched'}.json"
            if not file.exists():
                found = asdict(run(pipe, out, way, concept, to))
                file.with_suffix(".partial").write_text(json.dumps(found) + "\n")
                file.with_suffix(".partial").rename(file)
                typer.echo(f"{found}", err=True)
            points.append(Point(**json.loads(file.read_text())))
    typer.echo("\n".join(table(points)))


if __name__ == "__main__":
    typer.run(main)
