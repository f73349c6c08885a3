"""Forgetting against learning on the embedded model: `python docs/studies/forgetting.py OUT`, from a checkout.

The toy subject is taught without a constraint, with prior preservation, and under projectors cut in several ways, each over two
learning rates and several seeds. The study compares curves, not single settings: how much is forgotten where equally much is
learned. The scores were fixed before the runs:

- learned    share of 24 pictures of the subject, on backgrounds that no taught picture has, in which `subject.is_drawn` finds it
- forgotten  mean squared distance of latents, taught against untouched from the same noise, on 48 held-out captions, divided by
             that of two seeds of the untouched model: 1 is as different as another seed makes it
- class      the same on 24 captions of the subject's class (circles)
- accuracy   share of the 48 held-out captions whose colour, background and shape are all drawn right

OUT gets a file for each run, study.png, and the stores of the constrained runs. Started again, the study runs only the missing
runs.
"""

import contextlib
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import PROMPTS, ROOT, Cut, cut_projectors
from nullbooth_cli.model import device, load
from nullbooth_cli.settings.recipe import Feature, Recipe
from nullbooth_cli.toy import score, subject, world
from nullbooth_cli.training import dreambooth, setup

STEPS, GUIDANCE = 25, 4.0
CHECKPOINTS = (50, 100, 200, 400)
LEARNED = (0.25, 0.5, 0.75)  # scores at which what was forgotten is compared


@dataclass(frozen=True)
class Arm:
    """One way to teach: the projections that train, the constraint on them, and the learning rates to try."""

    name: str
    features: tuple[Feature, ...]
    rates: tuple[float, ...]
    cut: Cut | None = None
    prior: Literal["pictures", "distill"] | None = None
    word: bool = False
    pictures: Literal["toy", "toy_varied"] = "toy"


FREE, CONSTRAINED = (1e-3, 3e-3), (3e-3, 1e-2)  # learning rates
KV: tuple[Feature, ...] = ("k", "v")
ALL: tuple[Feature, ...] = ("q", "k", "v", "out")
ARMS = (
    # Without a constraint, and with prior preservation.
    Arm("free k v", KV, FREE),
    Arm("free q k v out", ALL, FREE),
    Arm("prior pictures, k v", KV, FREE, prior="pictures"),
    Arm("prior distilled, k v", KV, FREE, prior="distill"),
    Arm("prior distilled, q k v out", ALL, FREE, prior="distill"),
    # Under projectors.
    Arm("constrained 1e-2, k v", KV, CONSTRAINED, Cut("relative", 1e-2)),
    Arm("constrained 1e-3, k v", KV, CONSTRAINED, Cut("relative", 1e-3)),
    Arm("constrained 1e-4, k v", KV, CONSTRAINED, Cut("relative", 1e-4)),
    Arm("constrained 1e-3, q k v out", ALL, CONSTRAINED, Cut("relative", 1e-3)),
    Arm("constrained 1e-4, q k v out", ALL, CONSTRAINED, Cut("relative", 1e-4)),
    Arm("constrained at random, q k v out", ALL, CONSTRAINED, Cut("random", 1e-4)),
    # Both.
    Arm("constrained 1e-2, k v, prior distilled", KV, CONSTRAINED, Cut("relative", 1e-2), prior="distill"),
    Arm("constrained 1e-3, q k v out, prior distilled", ALL, CONSTRAINED, Cut("relative", 1e-3), prior="distill"),
    # The embedding of the subject's word trains as well.
    Arm("word alone", ("k",), (1e-12,), word=True),
    Arm("free k v, word", KV, FREE, word=True),
    Arm("prior distilled, k v, word", KV, FREE, prior="distill", word=True),
    Arm("constrained 1e-3, q k v out, word", ALL, CONSTRAINED, Cut("relative", 1e-3), word=True),
    Arm("constrained 1e-4, k v, word", KV, CONSTRAINED, Cut("relative", 1e-4), word=True),
    Arm("constrained 1e-4, k v, word, prior distilled", KV, CONSTRAINED, Cut("relative", 1e-4), prior="distill", word=True),
    Arm("constrained 1e-4, q k v out, word", ALL, CONSTRAINED, Cut("relative", 1e-4), word=True),
    # A threshold for each site, and no threshold at all.
    Arm("constrained by leakage 0.03, q k v out", ALL, CONSTRAINED, Cut("leakage", 0.03)),
    Arm("constrained by subject 10, q k v out", ALL, CONSTRAINED, Cut("subject", 10.0)),
    Arm("scaled 1e-3, q k v out", ALL, CONSTRAINED, Cut("soft", 1e-3)),
    Arm("scaled 1e-4, q k v out", ALL, CONSTRAINED, Cut("soft", 1e-4)),
    Arm("scaled 1e-4, k v, word", KV, CONSTRAINED, Cut("soft", 1e-4), word=True),
    # More pictures of the subject.
    Arm("free q k v out, twenty pictures", ALL, FREE, pictures="toy_varied"),
    Arm("constrained 1e-3, q k v out, twenty pictures", ALL, CONSTRAINED, Cut("relative", 1e-3), pictures="toy_varied"),
    Arm("free k v, word, twenty pictures", KV, FREE, word=True, pictures="toy_varied"),
    Arm("prior distilled, k v, word, twenty pictures", KV, FREE, prior="distill", word=True, pictures="toy_varied"),
    Arm("constrained 1e-4, k v, word, twenty pictures", KV, CONSTRAINED, Cut("relative", 1e-4), word=True, pictures="toy_varied"),
)
SHOWN = (
    "free q k v out",
    "free k v, word, twenty pictures",
    "prior distilled, q k v out",
    "prior distilled, k v, word, twenty pictures",
    "constrained 1e-3, q k v out",
    "constrained 1e-4, k v, word",
    "constrained 1e-4, k v, word, twenty pictures",
)
LEAST_DRAWN = 1e-3  # points that forgot less are drawn here


@dataclass(frozen=True, kw_only=True)
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
    """The captions that every checkpoint is measured on, with the pictures that the untouched model draws of them."""

    def __init__(self, pipe: Any) -> None:
        held_out = score.held_out_triples(48)
        circles = [triple for triple in world.split()[1] if triple[0] == subject.SHAPE]
        self.triples = held_out
        self.captions = {
            "forgotten": [world.caption(world.Drawing(*triple)) for triple in held_out],
            "forgotten_class": [world.caption(world.Drawing(*circles[i % len(circles)])) for i in range(24)],
        }
        self.backgrounds = [subject.ASKED_ON[i % len(subject.ASKED_ON)] for i in range(24)]
        self.untouched = {name: draw_latents(pipe, texts, 0) for name, texts in self.captions.items()}
        self.another_seed = {
            name: float(np.square(draw_latents(pipe, texts, 1_000_000) - self.untouched[name]).mean())
            for name, texts in self.captions.items()
        }

    def measure(self, pipe: Any) -> dict[str, float]:
        """learned, forgotten, forgotten_class and accuracy of a model. Cost: 96 pictures."""
        now = {name: draw_latents(pipe, texts, 0) for name, texts in self.captions.items()}
        found = {
            name: float(np.square(now[name] - self.untouched[name]).mean()) / self.another_seed[name] for name in self.captions
        }
        drawn = score.paint(pipe, [subject.caption(b) for b in self.backgrounds], steps=STEPS, guidance=GUIDANCE, seed=0)
        learned = [subject.is_drawn(picture, b) for picture, b in zip(drawn, self.backgrounds, strict=True)]
        return {
            **found,
            "learned": float(np.mean(learned)),
            "accuracy": score.share_right(decode(pipe, now["forgotten"]), self.triples),
        }


def draw_latents(pipe: Any, texts: Sequence[str], seed: int) -> np.ndarray[Any, Any]:
    """Latents `[N, C, h, w]` of captions, caption i from the noise of seed + i."""
    return score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=seed, output_type="latent")


@torch.no_grad()
def decode(pipe: Any, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pictures `[N, h, w, 3]` in [0, 1] of latents."""
    pictures = pipe.vae.decode(torch.from_numpy(found) / pipe.vae.config.scaling_factor).sample
    shown: np.ndarray[Any, Any] = pipe.image_processor.postprocess(pictures, output_type="np")
    return shown


def run(arm: Arm, folder: Path, scales: Scales, *, rate: float, seed: int) -> Iterator[Point]:
    """Teach the subject once; yields a point for each checkpoint."""
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            model="toy",
            output=output,
            instance_images=str(ROOT / "dataset/instances" / arm.pictures),
            features=list(arm.features),
            word=subject.WORD if arm.word else None,
            class_prompts=None if arm.prior is None else str(PROMPTS),
            distill_captions="own" if arm.prior == "distill" else None,
            distill_pictures="class" if arm.prior == "distill" else "instance",
            learning_rate=rate,
            train_batch_size=8,
            max_train_steps=CHECKPOINTS[-1],
            checkpointing_steps=CHECKPOINTS[-1],
            guidance_scale=GUIDANCE,
            seed=seed,
        )
        ready = setup.set_up(recipe, "cpu", None if arm.cut is None else cut_projectors(folder, arm.cut))
        for step, _ in enumerate(dreambooth.train(ready), start=1):
            if step in CHECKPOINTS:
                ready.denoiser.eval()
                drift = max(ready.constraint.drift().values()) if ready.constraint else None
                yield Point(arm=arm.name, rate=rate, seed=seed, step=step, **scales.measure(ready.pipe), drift=drift)
                ready.denoiser.train()


def least_forgotten(points: Sequence[Point], arm: str, seed: int, learned: float) -> float:
    """The least that a checkpoint of an arm and seed forgot, of those that learned at least this much; NaN if none did."""
    found = [p.forgotten for p in points if p.arm == arm and p.seed == seed and p.learned >= learned]
    return min(found, default=math.nan)


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table: for each arm and score, the mean (least to most over seeds) that was forgotten."""
    heads = [f"forgotten at {learned:g}" for learned in LEARNED]
    lines = [f"| arm | best score | {' | '.join(heads)} |", f"| --- | --- |{' --- |' * len(heads)}"]
    for arm in dict.fromkeys(p.arm for p in points):
        seeds = sorted({p.seed for p in points if p.arm == arm})
        best = [max(p.learned for p in points if p.arm == arm and p.seed == seed) for seed in seeds]
        cells = [f"{np.mean(best):.2f} ({min(best):.2f} to {max(best):.2f})"]
        for learned in LEARNED:
            found = [x for seed in seeds if not math.isnan(x := least_forgotten(points, arm, seed, learned))]
            of = f", {len(found)} of {len(seeds)} seeds" if len(found) < len(seeds) else ""
            cells.append(f"{np.mean(found):.3g} ({min(found):.3g} to {max(found):.3g}{of})" if found else "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def picture(points: Sequence[Point], path: Path) -> Path:
    """Draw the least that was forgotten at each score, logarithmic: a line for each seed of the arms `SHOWN`.

    Every checkpoint of the other arms is a grey dot. Returns the path.
    """
    from nullbooth_cli.report.plots.canvas import COLOURS, GREY, axes, figure, save

    made = figure(11, 5.5, "Forgetting against learning")
    drawn = axes(made, "learned: share of pictures that show the subject", "forgotten: 1 is another seed", (1, 1, 1))
    drawn.set_yscale("log")
    drawn.set_ylim(LEAST_DRAWN, 10)
    others = [p for p in points if p.arm not in SHOWN]
    drawn.scatter([p.learned for p in others], [max(p.forgotten, LEAST_DRAWN) for p in others], s=6, color=GREY, alpha=0.5)
    for arm, colour, mark in zip(SHOWN, COLOURS, "osD^vP*", strict=True):
        for i, seed in enumerate(sorted({p.seed for p in points if p.arm == arm})):
            scores = sorted({p.learned for p in points if p.arm == arm and p.seed == seed})
            least = [max(least_forgotten(points, arm, seed, score), LEAST_DRAWN) for score in scores]
            drawn.plot(scores, least, color=colour, marker=mark, markersize=4, linewidth=1.2, label=None if i else arm)
    if drawn.get_legend_handles_labels()[0]:
        drawn.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return save(made, path)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default 0, 1, 2.")] = None,
    only: Annotated[str, typer.Option(help="Only arms whose name has this text.")] = "",
) -> None:
    """Run the study, or resume it; prints a table. Several processes may share one folder: each takes runs that no other has."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    pipe = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device.pick_device("cpu")
    )
    scales = Scales(pipe)
    for seed, arm in itertools.product(seeds or (0, 1, 2), [arm for arm in ARMS if only in arm.name]):
        for rate in arm.rates:
            file = out / "runs" / f"{arm.name} {rate:g} {seed}.json"
            with contextlib.suppress(Timeout), FileLock(f"{file}.lock", timeout=0):
                if not file.exists():
                    found = [asdict(point) for point in run(arm, out, scales, rate=rate, seed=seed)]
                    file.with_suffix(".partial").write_text(json.dumps(found, indent=1) + "\n")
                    file.with_suffix(".partial").rename(file)
                    typer.echo(f"seed {seed}, {arm.name}, {rate:g}: {found[-1]}", err=True)
    points = [Point(**point) for file in sorted((out / "runs").glob("*.json")) for point in json.loads(file.read_text())]
    order = [arm.name for arm in ARMS]
    points.sort(key=lambda point: order.index(point.arm))
    picture(points, out / "study.png")
    typer.echo("\n".join(table(points)))


if __name__ == "__main__":
    typer.run(main)
