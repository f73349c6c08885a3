"""Forgetting against learning on the embedded model: `python -m nullbooth_cli.toy.study OUT`.

The toy subject is taught without a constraint, with prior preservation, and under projectors of several thresholds, each over a
ladder of learning rates and several seeds. What counts is not one setting against another but the curve: how much is forgotten
where equally much is learned. The scores were fixed before the runs:

- learned    share of 24 pictures of the subject, on backgrounds that no taught picture has, in which `subject.is_drawn` finds it
- forgotten  mean squared distance of latents, taught against untouched from the same noise, on 48 held-out captions, divided by
             that of two seeds of the untouched model: 1 is as different as another seed makes it
- class      the same on 24 captions of the subject's class (circles)
- accuracy   share of the 48 held-out captions whose colour, background and shape are all drawn right

OUT holds study.json (every checkpoint of every run; runs that are there are not made again), study.png and the stores.
"""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from nullbooth_cli import model, training
from nullbooth_cli.config import Config, load_config
from nullbooth_cli.prompts import load_prompts
from nullbooth_cli.recipe import Feature, Recipe
from nullbooth_cli.runs import Run
from nullbooth_cli.stages import execute
from nullbooth_cli.store import Store
from nullbooth_cli.toy import score, subject, world

STEPS, GUIDANCE = 25, 4.0
CHECKPOINTS = (50, 100, 200, 400)
LEARNED = (0.25, 0.5, 0.75)  # scores at which what was forgotten is compared
CONFIG = Path("configs/nullbooth.yaml")


@dataclass(frozen=True)
class Arm:
    """One way to teach: what is trained, what holds it, and the learning rates to try."""

    name: str
    features: tuple[Feature, ...]
    rates: tuple[float, ...]
    threshold: float | None = None
    prior: Literal["pictures", "distill"] | None = None


FREE, HELD = (1e-3, 3e-3), (3e-3, 1e-2)
ALL: tuple[Feature, ...] = ("q", "k", "v", "out")
ARMS = (
    Arm("free k v", ("k", "v"), FREE),
    Arm("free q k v out", ALL, FREE),
    Arm("prior pictures, k v", ("k", "v"), FREE, prior="pictures"),
    Arm("prior distilled, k v", ("k", "v"), FREE, prior="distill"),
    Arm("held 1e-2, k v", ("k", "v"), HELD, 1e-2),
    Arm("held 1e-3, k v", ("k", "v"), HELD, 1e-3),
    Arm("held 1e-4, k v", ("k", "v"), HELD, 1e-4),
    Arm("held 1e-3, q k v out", ALL, HELD, 1e-3),
    Arm("held 1e-2, k v, prior distilled", ("k", "v"), HELD, 1e-2, prior="distill"),
)


@dataclass(frozen=True)
class Point:
    """One checkpoint of one run."""

    arm: str
    rate: float
    seed: int
    step: int
    learned: float
    forgotten: float
    forgotten_class: float
    accuracy: float
    drift: float | None


class Scales:
    """The captions that everything is measured on, and what the untouched model makes of them."""

    def __init__(self, pipe: Any) -> None:
        held_out = score.held_out_triples(48)
        circles = [triple for triple in world.split()[1] if triple[0] == subject.SHAPE]
        self.triples = held_out
        self.captions = {
            "forgotten": [world.caption(world.Drawing(*triple)) for triple in held_out],
            "forgotten_class": [world.caption(world.Drawing(*circles[i % len(circles)])) for i in range(24)],
        }
        self.backgrounds = [subject.ASKED_ON[i % len(subject.ASKED_ON)] for i in range(24)]
        self.untouched = {name: latents(pipe, texts, 0) for name, texts in self.captions.items()}
        self.another_seed = {
            name: float(np.square(latents(pipe, texts, 1_000_000) - self.untouched[name]).mean())
            for name, texts in self.captions.items()
        }

    def measure(self, pipe: Any) -> dict[str, float]:
        """learned, forgotten, forgotten_class and accuracy of a model. Cost: 96 pictures."""
        now = {name: latents(pipe, texts, 0) for name, texts in self.captions.items()}
        found = {
            name: float(np.square(now[name] - self.untouched[name]).mean()) / self.another_seed[name] for name in self.captions
        }
        drawn = score.paint(pipe, [subject.caption(b) for b in self.backgrounds], steps=STEPS, guidance=GUIDANCE, seed=0)
        readings = [world.read(picture) for picture in decoded(pipe, now["forgotten"])]
        right = [(r.shape, r.colour, r.background) == triple for r, triple in zip(readings, self.triples, strict=True)]
        learned = [subject.is_drawn(picture, b) for picture, b in zip(drawn, self.backgrounds, strict=True)]
        return {**found, "learned": float(np.mean(learned)), "accuracy": float(np.mean(right))}


def latents(pipe: Any, texts: Sequence[str], seed: int) -> np.ndarray[Any, Any]:
    """Latents `[N, C, h, w]` of captions, caption i from the noise of seed + i."""
    generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(len(texts))]
    drawn = pipe(list(texts), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="latent")
    found: np.ndarray[Any, Any] = drawn.images.numpy()
    return found


@torch.no_grad()
def decoded(pipe: Any, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pictures `[N, h, w, 3]` in [0, 1] of latents."""
    pictures = pipe.vae.decode(torch.from_numpy(found) / pipe.vae.config.scaling_factor).sample
    shown: np.ndarray[Any, Any] = ((pictures + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown


def store_at(folder: Path, arm: Arm) -> Path:
    """A store of what enters the projections that an arm trains, cut at its threshold; moments are collected once for all."""
    chosen = "".join(arm.features)
    base, place = folder / f"moments-{chosen}.zarr", folder / f"held-{chosen}-{arm.threshold:g}.zarr"
    if place.exists():
        return place
    switches = [f"collect.collect_features.{name}_features={str(name in arm.features).lower()}" for name in ALL]
    overrides = [f"store={base}", "collect.keep=moments", *switches]
    _run(load_config(CONFIG, overrides), "schedule", "collect", "covariance")
    partial = folder / "copying"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial)
    _run(load_config(CONFIG, [*overrides, f"store={partial}", f"project.relative_threshold={arm.threshold}"]), "project")
    partial.rename(place)
    return place


def _run(config: Config, *wanted: str) -> None:
    prompts = load_prompts(config.original_knowledge_prompts)
    store = Store.open_or_create(config.store, config.model_dump())
    with store.lock():
        for stage in wanted:
            for _ in execute(stage, Run(config, prompts, store, "cpu")):
                pass


def run(arm: Arm, rate: float, seed: int, folder: Path, scales: Scales) -> Iterator[Point]:
    """Teach the subject once; yields a point for each checkpoint."""
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            model="toy",
            output=output,
            store=None if arm.threshold is None else str(store_at(folder, arm)),
            features=list(arm.features),
            class_prompts=None if arm.prior is None else "dataset/prompts/toy.txt",
            prior=arm.prior or "pictures",
            learning_rate=rate,
            train_batch_size=8,
            max_train_steps=CHECKPOINTS[-1],
            checkpointing_steps=CHECKPOINTS[-1],
            guidance_scale=GUIDANCE,
            seed=seed,
        )
        ready = training.prepare(recipe, "cpu")
        for step, _ in enumerate(training.train(ready), start=1):
            if step in CHECKPOINTS:
                ready.denoiser.eval()
                drift = max(ready.constraint.drift().values()) if ready.constraint else None
                yield Point(arm.name, rate, seed, step, **scales.measure(ready.pipe), drift=drift)
                ready.denoiser.train()


def least_forgotten(points: Sequence[Point], arm: str, seed: int, learned: float) -> float:
    """What the best checkpoint of an arm and seed forgot that learned at least so much; NaN if none did."""
    found = [p.forgotten for p in points if p.arm == arm and p.seed == seed and p.learned >= learned]
    return min(found, default=math.nan)


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table: for each arm, mean (least to most over seeds) of what was forgotten at each score."""
    seeds = sorted({p.seed for p in points})
    heads = [f"forgotten at {learned:g}" for learned in LEARNED]
    lines = [f"| arm | best score | {' | '.join(heads)} |", f"| --- | --- |{' --- |' * len(heads)}"]
    for arm in dict.fromkeys(p.arm for p in points):
        best = [max(p.learned for p in points if p.arm == arm and p.seed == seed) for seed in seeds]
        cells = [f"{np.mean(best):.2f} ({min(best):.2f} to {max(best):.2f})"]
        for learned in LEARNED:
            found = [x for seed in seeds if not math.isnan(x := least_forgotten(points, arm, seed, learned))]
            of = f", {len(found)} of {len(seeds)} seeds" if len(found) < len(seeds) else ""
            cells.append(f"{np.mean(found):.3g} ({min(found):.3g} to {max(found):.3g}{of})" if found else "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def picture(points: Sequence[Point], path: Path) -> Path:
    """Every checkpoint: what was forgotten (logarithmic) against what was learned, a colour for each arm."""
    from nullbooth_cli.plots.canvas import COLOURS, axes, figure, save

    made = figure(9, 6, "Forgetting against learning: every checkpoint of every run")
    drawn = axes(made, "learned: share of pictures that show the subject", "forgotten: 1 is another seed", (1, 1, 1))
    drawn.set_yscale("log")
    marks = "osD^vP*Xh"
    for i, arm in enumerate(dict.fromkeys(p.arm for p in points)):
        own = [p for p in points if p.arm == arm]
        learned, forgotten = [p.learned for p in own], [p.forgotten for p in own]
        drawn.scatter(learned, forgotten, s=22, color=COLOURS[i % len(COLOURS)], marker=marks[i % len(marks)], label=arm)
    drawn.legend(fontsize=7, loc="lower right")
    return save(made, path)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="A run of every arm and rate. Repeatable; else 0, 1.")] = None,
    only: Annotated[str, typer.Option(help="Only arms whose name holds this.")] = "",
) -> None:
    """Run the study, or go on with it; prints a table."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "study.json"
    points = [Point(**point) for point in json.loads(file.read_text())["points"]] if file.exists() else []
    pipe = model.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=model.pick_device("cpu")
    )
    scales = Scales(pipe)
    for seed, arm in itertools.product(seeds or (0, 1), [arm for arm in ARMS if only in arm.name]):
        for rate in arm.rates:
            if any((p.arm, p.rate, p.seed) == (arm.name, rate, seed) for p in points):
                continue
            points += run(arm, rate, seed, out, scales)
            document = {"another_seed": scales.another_seed, "points": [asdict(point) for point in points]}
            file.with_suffix(".partial").write_text(json.dumps(document, indent=1) + "\n")
            file.with_suffix(".partial").rename(file)
            typer.echo(f"seed {seed}, {arm.name}, {rate:g}: {points[-1]}", err=True)
    picture(points, out / "study.png")
    typer.echo("\n".join(table(points)))


if __name__ == "__main__":
    typer.run(main)
