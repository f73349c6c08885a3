"""A finished change refitted, on the embedded model: `python docs/studies/refit.py OUT`, from a checkout.

Four subjects are taught freely in four ways, with several seeds, and every result is measured as it is, cut down to the null
space (dW P), and refitted (dW M) at m = 10 and at the knee. The same is taught under a constraint beside it. No picture and no
step of training goes into a refit: it sees captions of the subject on every background of the world. The scores were fixed before
the runs:

- learned    share of 24 pictures of the subject, on backgrounds that no taught picture has, in which `Taught.is_drawn` finds it
- other      the same of 12, with another word that the model does not know in place of the subject's
- forgotten  as in docs/studies/forgetting.py, on 24 held-out captions: 1 is as different as another seed

OUT gets a file for each run and the store. Started again, the study runs only the missing runs.
"""

import contextlib
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import Cut, CutProjectors, cut_projectors
from docs.studies.forgetting import draw_latents
from docs.studies.refit_subjects import SUBJECTS, Taught, write_pictures
from nullbooth_cli.api import OpenStore
from nullbooth_cli.model import device, load
from nullbooth_cli.model.trained_files import TrainedFiles
from nullbooth_cli.progress import result_of
from nullbooth_cli.settings.recipe import Feature, Recipe
from nullbooth_cli.store import Store
from nullbooth_cli.toy import score, subject, world
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.refit_inputs import used_inputs
from nullbooth_cli.training.refit_solution import FINE, Balance, Matrix, Rung, drift_before, knee, rungs_of, solve
from nullbooth_cli.training.write_trained import write_trained

STEPS, GUIDANCE = 25, 4.0
TRAINED, CUT = 300, Cut("relative", 1e-4)
NUM_DRAWN = 8  # of the captions, for sites that need pictures
FIXED = (10.0,)
PICTURES, OTHERS, CAPTIONS = 24, 12, 24


@dataclass(frozen=True)
class Arm:
    """One way to teach: the projections that train, a LoRA of a rank or None for whole weights, with a word or without."""

    name: str
    features: tuple[Feature, ...]
    rank: int | None
    word: bool = False


KV: tuple[Feature, ...] = ("k", "v")
ARMS = (
    Arm("LoRA 4, k v, word", KV, 4, word=True),
    Arm("LoRA 8, k v", KV, 8),
    Arm("LoRA 8, q k v out", ("q", "k", "v", "out"), 8),
    Arm("weights, k v, word", KV, None, word=True),
)
RATES = {"free": (1e-3, 3e-3), "constrained": (3e-3, 1e-2)}  # of weights, of a LoRA
WAYS = ("free", "projected", *(f"m = {m:g}" for m in FIXED), "knee", "constrained")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: how it was taught, and what was done to it. `m`, `missing` and `drift` are those of a refit."""

    subject: str
    arm: str
    seed: int
    way: str
    learned: float
    other: float
    forgotten: float
    m: float | None = None
    missing: float | None = None
    drift: float | None = None


class Scales:
    """The captions that every model is measured on, with what the untouched model draws of them."""

    def __init__(self, pipe: Any) -> None:
        self.captions = [world.caption(world.Drawing(*triple)) for triple in score.held_out_triples(CAPTIONS)]
        self.untouched = draw_latents(pipe, self.captions, 0)
        self.another_seed = float(np.square(draw_latents(pipe, self.captions, 1_000_000) - self.untouched).mean())

    def measure(self, pipe: Any, taught: Taught, token: str) -> dict[str, float]:
        """learned, other and forgotten of a model. Cost: 60 pictures."""
        now = draw_latents(pipe, self.captions, 0)
        return {
            "learned": share_drawn(pipe, taught, token, PICTURES),
            "other": share_drawn(pipe, taught, taught.other_word, OTHERS),
            "forgotten": float(np.square(now - self.untouched).mean()) / self.another_seed,
        }


def share_drawn(pipe: Any, taught: Taught, word: str, count: int) -> float:
    """The share of `count` pictures that show the subject, asked for with a word."""
    asked = [subject.ASKED_ON[i % len(subject.ASKED_ON)] for i in range(count)]
    texts = [taught.caption(background, word, number) for number, background in enumerate(asked)]
    drawn = score.paint(pipe, texts, steps=STEPS, guidance=GUIDANCE, seed=0)
    return float(np.mean([taught.is_drawn(*each) for each in zip(drawn, asked, range(count), strict=True)]))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every run needs: the untouched model, its weights in float64, the store, and the scales."""

    pipe: Any
    initial: Mapping[str, Matrix]
    store: CutProjectors
    known: OpenStore
    scales: Scales


def open_bench(folder: Path) -> Bench:
    """Collect the store the first time. Cost: half a minute then, and 48 pictures."""
    pipe = fresh()
    initial = {name: tensor.double().numpy().copy() for name, tensor in pipe.unet.named_parameters()}
    store = cut_projectors(folder, CUT)
    known = OpenStore(Store.open(folder / "known.zarr"))
    return Bench(pipe=pipe, initial=initial, store=store, known=known, scales=Scales(pipe))


def fresh(model: str = "toy") -> Any:
    """The embedded model, or another."""
    return load.load_pipeline(
        model, revision=None, variant=None, dtype="float32", local_files_only=True, device=device.pick_device("cpu")
    )


def run(bench: Bench, taught: Taught, arm: Arm, seed: int, way: str) -> Iterator[Point]:
    """Teach a subject once; yields a point for the result and, of a free run, for all that is done to it."""
    with tempfile.TemporaryDirectory() as folder:
        teach(bench, taught, arm, seed, way, Path(folder))
        files = TrainedFiles.find(Path(folder, "trained"))
        assert files is not None
        pipe = fresh()
        files.load_into(pipe)
    token = files.token or taught.word

    def point(done: str, rung: Rung | None = None) -> Point:
        of_refit = {} if rung is None else {"m": rung.m, "missing": rung.missing, "drift": rung.drift}
        found = bench.scales.measure(pipe, taught, token)
        return Point(subject=taught.name, arm=arm.name, seed=seed, way=done, **found, **of_refit)

    yield point(way)
    if way == "constrained":
        return
    weights = dict(pipe.unet.named_parameters())
    change = {name: weights[name].double().numpy() - initial for name, initial in bench.initial.items()}
    change = {name: changed for name, changed in change.items() if changed.any()}
    texts = [taught.caption(background, token, number) for number, background in enumerate(world.BACKGROUNDS)]
    for done, maps, rung in solutions(bench, pipe, change, texts):
        for name, changed in change.items():
            weights[name].data.copy_(torch.from_numpy(bench.initial[name] + changed @ maps[name]))
        yield point(done, rung)


def teach(bench: Bench, taught: Taught, arm: Arm, seed: int, way: str, folder: Path) -> None:
    """Write trained files of a subject into `folder`/trained."""
    pictures = folder / "pictures"
    write_pictures(taught, pictures, subject.TAUGHT_ON * 5, seed)
    recipe = Recipe(
        model="toy",
        output=str(folder / "run"),
        instance_images=str(pictures),
        method="full" if arm.rank is None else "lora",
        rank=arm.rank or 8,
        features=list(arm.features),
        word=taught.word if arm.word else None,
        learning_rate=RATES[way][arm.rank is not None],
        train_batch_size=8,
        max_train_steps=TRAINED,
        checkpointing_steps=TRAINED,
        guidance_scale=GUIDANCE,
        seed=seed,
    )
    ready = setup.set_up(recipe, "cpu", bench.store if way == "constrained" else None)
    for _ in dreambooth.train(ready):
        pass
    write_trained(ready, folder / "trained")


def solutions(
    bench: Bench, pipe: Any, change: Mapping[str, Matrix], texts: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Matrix], Rung | None]]:
    """(what is done, the matrix of each weight, what was predicted): the projectors, then the refits."""
    projectors = bench.store.projectors()
    yield "projected", {name: projectors[name].dense() for name in change}, None
    known, shipped = bench.known, pipe.scheduler
    moments = result_of(
        used_inputs(pipe, known.config, known.schedule(), list(change), texts, num_drawn=NUM_DRAWN), lambda _: None
    )
    pipe.scheduler = shipped
    of = {name: known.moment(site).second_moment for site in known.sites() for name in site.weights if name in change}
    ladder = (*FIXED, *FINE)
    curves = [
        Balance(moments[name].kept, of[name]).curve(changed, bench.initial[name], ladder) for name, changed in change.items()
    ]
    rungs = rungs_of(ladder, curves)
    best = rungs[len(FIXED) + knee(rungs[len(FIXED) :], drift_before(curves))]
    for name, rung in (*((f"m = {rung.m:g}", rung) for rung in rungs[: len(FIXED)]), ("knee", best)):
        yield name, {weight: solve(moments[weight].kept, of[weight], rung.m) for weight in change}, rung


def table(points: Sequence[Point]) -> list[str]:
    """A Markdown table: for each arm and way, means over subjects and seeds, and what was lost.

    A model is lost if its subject was learned (a half or more of the pictures) by the free run, and is in less than a quarter.
    """
    free = {(p.subject, p.arm, p.seed): p for p in points if p.way == "free"}
    lines = ["| taught | then | learned | other word | forgotten | lost |", "| --- | --- | --- | --- | --- | --- |"]
    for arm, way in itertools.product([arm.name for arm in ARMS], WAYS):
        found = [p for p in points if (p.arm, p.way) == (arm, way)]
        if not found:
            continue
        known = [p for p in found if (p.subject, arm, p.seed) in free and free[p.subject, arm, p.seed].learned >= 0.5]
        lost = [p for p in known if p.learned < 0.25]
        means = [float(np.mean([getattr(p, name) for p in found])) for name in ("learned", "other")]
        forgotten = float(np.exp(np.mean([np.log(max(p.forgotten, 1e-6)) for p in found])))
        lines.append(f"| {arm} | {way} | {means[0]:.2f} | {means[1]:.2f} | {forgotten:.3g} | {len(lost)} of {len(known)} |")
    return lines


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the result.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable; default 0, 1, 2.")] = None,
    only: Annotated[str, typer.Option(help="Only runs whose name has this text.")] = "",
) -> None:
    """Run the study, or resume it; prints a table. Several processes may share one folder: each takes runs that no other has."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    bench = open_bench(out)
    for seed, way, taught, arm in itertools.product(seeds or (0, 1, 2), RATES, SUBJECTS, ARMS):
        name = f"{taught.name} {arm.name} {way} {seed}"
        file = out / "runs" / f"{name}.json"
        if only not in name:
            continue
        with contextlib.suppress(Timeout), FileLock(f"{file}.lock", timeout=0):
            if not file.exists():
                found = [asdict(point) for point in run(bench, taught, arm, seed, way)]
                file.with_suffix(".partial").write_text(json.dumps(found, indent=1) + "\n")
                file.with_suffix(".partial").rename(file)
                typer.echo(
                    f"{name}: " + "; ".join(f"{p['way']} {p['learned']:.2f} {p['forgotten']:.3g}" for p in found), err=True
                )
    points = [Point(**point) for file in sorted((out / "runs").glob("*.json")) for point in json.loads(file.read_text())]
    typer.echo("\n".join(table(points)))


if __name__ == "__main__":
    typer.run(main)
