"""The fall of the denoising loss beside the exact score: `python docs/studies/instance_loss.py OUT`, from a checkout.

The toy subject is taught to the embedded model in four ways, and every checkpoint gets both measures:

- learned    share of 48 pictures of the subject, on backgrounds that no taught picture has, in which `subject.is_drawn` finds it
- fall       of the loss on the taught pictures, base against taught, as `evaluate` measures it
- unseen     the same on twenty pictures of the subject that were not taught, on those other backgrounds

OUT gets a file for each way, and the stores of the constrained ones. Started again, the study runs only what is missing.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import ROOT, Cut, cut_projectors
from nullbooth_cli.evaluation.instance_loss import instance_errors, instance_loss
from nullbooth_cli.evaluation.learned import learned_by_loss
from nullbooth_cli.evaluation.pictures import read_images
from nullbooth_cli.settings.captions import captioned_images
from nullbooth_cli.settings.recipe import Feature, Recipe
from nullbooth_cli.toy import score, subject, world
from nullbooth_cli.training import dreambooth, setup

STEPS, GUIDANCE, BATCH = 25, 4.0, 64
MOST_STEPS, EVERY = 400, 50
PICTURES = 48


@dataclass(frozen=True)
class Way:
    """One way to teach."""

    name: str
    cut: Cut | None
    rate: float
    pictures: str = "toy_varied"
    features: tuple[Feature, ...] = ("k", "v")
    word: bool = True


WAYS = (
    Way("constrained at 1e-4", Cut("relative", 1e-4), 3e-3),
    Way("constrained at 1e-5", Cut("relative", 1e-5), 3e-3),
    Way("free", None, 1e-3),
    Way("free, four pictures", None, 1e-3, pictures="toy", features=("q", "k", "v", "out"), word=False),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One checkpoint: both measures, and the value that the loss has on the scale of `learned`."""

    way: str
    step: int
    learned: float
    fall: float
    standard_error: float
    unseen: float
    value: float


def unseen_pictures() -> tuple[NDArray[np.uint8], list[str]]:
    """Twenty pictures of the subject with their captions, on backgrounds that no taught picture has."""
    sizes = ((0.0, 0.0, 10.0), (1.5, -1.0, 9.0), (-1.0, 1.0, 11.0), (1.0, 1.0, 10.0), (-1.5, 0.0, 9.5))
    drawn = [(subject.draw(on, x, y, radius), subject.caption(on)) for on, (x, y, radius) in product(subject.ASKED_ON, sizes)]
    return np.stack([(image * 255).round().astype(np.uint8) for image, _ in drawn]), [text for _, text in drawn]


def run(way: Way, folder: Path) -> Iterator[Point]:
    """Teach the subject in one way; yields a point for each checkpoint."""
    images = captioned_images(str(ROOT / "dataset/instances" / way.pictures))
    taught = read_images([image.path for image in images], world.SIZE, world.SIZE), [image.prompt.text for image in images]
    asked = [subject.ASKED_ON[i % len(subject.ASKED_ON)] for i in range(PICTURES)]

    def errors(pipe: Any) -> list[NDArray[np.floating]]:
        return [instance_errors(pipe, *of, batch_size=BATCH, seed=0) for of in (taught, unseen_pictures())]

    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            model="toy",
            output=output,
            instance_images=str(ROOT / "dataset/instances" / way.pictures),
            features=list(way.features),
            word=subject.WORD if way.word else None,
            learning_rate=way.rate,
            train_batch_size=8,
            max_train_steps=MOST_STEPS,
            checkpointing_steps=MOST_STEPS,
            guidance_scale=GUIDANCE,
        )
        ready = setup.set_up(recipe, "cpu", None if way.cut is None else cut_projectors(folder, way.cut))
        base = errors(ready.pipe)
        for step, _ in enumerate(dreambooth.train(ready), start=1):
            if step % EVERY == 0:
                ready.denoiser.eval()
                drawn = score.paint(ready.pipe, list(map(subject.caption, asked)), steps=STEPS, guidance=GUIDANCE, seed=0)
                found = [subject.is_drawn(picture, on) for picture, on in zip(drawn, asked, strict=True)]
                loss, unseen = map(instance_loss, base, errors(ready.pipe))
                yield Point(
                    way=way.name,
                    step=step,
                    learned=float(np.mean(found)),
                    fall=loss.fall,
                    standard_error=loss.standard_error,
                    unseen=unseen.fall,
                    value=learned_by_loss(loss).value,
                )
                ready.denoiser.train()


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table with a row for each checkpoint."""
    lines = [
        "| way | steps | learned, exactly | fall of the loss | on the scale | fall on unseen pictures |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for p in points:
        fall = f"{p.fall:.3f} +- {p.standard_error:.3f}"
        lines.append(f"| {p.way} | {p.step} | {p.learned:.2f} | {fall} | {p.value:.2f} | {p.unseen:.3f} |")
    return lines


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    only: Annotated[str, typer.Option(help="Only ways whose name has this text.")] = "",
) -> None:
    """Run the study, or resume it; prints a table."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for way in (way for way in WAYS if only in way.name):
        file = out / "runs" / f"{way.name}.json"
        if not file.exists():
            found = [asdict(point) for point in run(way, out)]
            file.with_suffix(".partial").write_text(json.dumps(found, indent=1) + "\n")
            file.with_suffix(".partial").rename(file)
    files = [out / "runs" / f"{way.name}.json" for way in WAYS]
    typer.echo("\n".join(table([Point(**point) for file in files if file.exists() for point in json.loads(file.read_text())])))


if __name__ == "__main__":
    typer.run(main)
