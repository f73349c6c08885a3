"""The pictures of the study of evidence: `python docs/studies/evidence_pictures.py FOLDER --out OUT`, from a checkout.

evidence.png has every reported way: what it moved against what it learned. evidence-sheet.png has what some of them draw, trained
once more on one subject. FOLDER gets both; OUT is the folder of the study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies import evidence_search
from docs.studies.evidence_ground import REPORTED, Ground, open_ground
from docs.studies.evidence_models import Models
from docs.studies.evidence_report import FIRST, SHOWN, of
from docs.studies.evidence_runs import PACKED, Point, Setting, read
from docs.studies.evidence_sets import asked_of, own_sets, shared_sets
from docs.studies.evidence_train import Run, Training
from docs.studies.evidence_ways import BY_NAME, MAIN, Way
from docs.studies.refit_subjects import TAUGHT
from nullbooth_cli.toy import score

KINDS = ("nothing keeps the rest", "pictures or a penalty", "the constraint", "both", "solved again after training")
SHEET = {"held-out": 3, "a place": 2, "two things": 2, "word before others": 2}  # pictures of each set
LABEL, ROW = 330, 102  # pixels
BESIDE: dict[str, tuple[int, int, Literal["left", "right"]]] = {  # labels that others would cover: where, in points
    "LoRA 4, distilled x100": (-7, -3, "right"),
    "LoRA 16, distilled x100": (7, 4, "left"),
    "constrained 1e-4": (7, -9, "left"),
    "constrained 1e-5": (-7, -3, "right"),
}


def kind(way: Way) -> str:
    """What a way keeps the rest by."""
    if way.refit is not None:
        return KINDS[4]
    kept = way.extra is not None or way.pull > 0 or way.fisher > 0
    return KINDS[(2 + kept) if way.cut is not None else int(kept)]


def scatter(points: Sequence[Point], path: Path) -> Path:
    """Draw the mean learned and the median moved of every reported way; returns the path."""
    from nullbooth_cli.report.plots.canvas import COLOURS, axes, figure, save

    made = figure(11, 6.5, "What was moved against what was learned: six subjects, three seeds")
    drawn = axes(
        made, "learned: share of pictures that show the subject", "moved on held-out prompts: 1 is another seed", (1, 1, 1)
    )
    drawn.set_yscale("log")
    for name, colour, mark in zip(KINDS, COLOURS, "oD^sv", strict=False):
        ways = [way for way in MAIN if kind(BY_NAME[way]) == name]
        x = [float(np.mean([point.learned for point in of(points, way)])) for way in ways]
        y = [float(np.median([point.moved["held-out"] for point in of(points, way)])) for way in ways]
        drawn.scatter(x, y, color=colour, marker=mark, s=45, label=name)
        for way, left, top in zip(ways, x, y, strict=True):
            if way in FIRST:
                x_off, y_off, side = BESIDE.get(way, (7, -3, "left"))
                drawn.annotate(way, (left, top), textcoords="offset points", xytext=(x_off, y_off), ha=side, fontsize=8)
    drawn.legend(fontsize=9, loc="lower left")
    drawn.set_xlim(0.25, 0.85)
    return save(made, path)


def sheet(models: Models, ground: Ground, settings: dict[str, Setting], path: Path) -> Path:
    """Draw what the ways `SHOWN` make of the first subject and of other prompts; returns the path. Cost: their training."""
    taught = TAUGHT[0]
    sets = {each.name: each for each in [*shared_sets(), *own_sets(taught)]}
    asked = asked_of(taught, validates=False)["learned"]
    captions = [*asked.captions[:3], *(text for name, count in SHEET.items() for text in sets[name].captions[:count])]
    seeds = [*range(asked.seed, asked.seed + 3), *(sets[name].seed + i for name, count in SHEET.items() for i in range(count))]
    tokens, number = models.tokens(captions)[None], torch.tensor([models.word_number(taught.word)], device=models.device)
    noise = torch.cat([models.noise([seed]) for seed in seeds])
    with models.using(models.untrained(1)):
        rows = {"untouched": models.pictures(models.draw(models.encode(tokens, number, models.table[number]), noise))[0]}
    for name in SHOWN:
        run = Run(way=BY_NAME[name], taught=taught, rate=settings[name].rate, seed=REPORTED[0])
        [trained] = Training(models, ground, [run]).train([settings[name].steps])
        with models.using(trained.weights):
            rows[name] = models.pictures(models.draw(models.encode(tokens, number, trained.rows), noise))[0]
    strips = [score.grid(each.cpu().numpy(), columns=len(captions)) for each in rows.values()]
    canvas = Image.new("RGB", (LABEL + strips[0].width, ROW * len(rows)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for i, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        pen.text((6, ROW * i + 40), name, fill="black", font=font)
        canvas.paste(strip, (LABEL, ROW * i))
    canvas.save(path)
    return path


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
) -> None:
    """Draw both pictures."""
    searched, points = read([PACKED])
    typer.echo(str(scatter(points, folder / "evidence.png")))
    typer.echo(str(sheet(Models(device), open_ground(out), evidence_search.every(searched), folder / "evidence-sheet.png")))


if __name__ == "__main__":
    typer.run(main)
