"""The ways of the study of one subject after another: how each teaches a subject on a model that was taught others before.

A way starts from the model that the last subject left, or teaches every subject apart on the base and adds the changes up. What
is taught is kept as trained files, a few hundred kilobytes each, so that every model of the study can be put together again.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from docs.studies.cuts import PROMPTS, TEXT_ALONE, collect
from docs.studies.forgetting import draw_latents
from docs.studies.refit import fresh
from docs.studies.refit_subjects import IN_SEQUENCE, Taught, write_pictures
from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.model.trained_files import TrainedFiles
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import add_up, moment_of, pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Framing
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.distillation import Distillation, Teacher
from nullbooth_cli.training.examples import EncodedTexts, Examples
from nullbooth_cli.training.write_trained import write_trained

GUIDANCE = 4.0
EMPTY, REPLAYED = 80, 30  # pictures to distil: of the empty prompt, a quarter of those of the base; of each earlier subject
RANK = 8  # of a fixed basis: four of them have room in the null space at 1e-4


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to teach subjects one after another.

    `cut` is the relative threshold of a constraint; where it is `remembered`, every subject that was taught joins what the next
    one's constraint preserves. `distilled` is the weight of distillation with rehearsal. `apart`: each subject is taught on the
    base alone, as a LoRA or in a fixed basis within the null space, and the changes are added up.
    """

    name: str
    rate: float
    steps: int = 300
    cut: float | None = None
    remembered: bool = False
    distilled: float | None = None
    apart: Literal["lora", "basis"] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a subject is taught on the model that the last one left."""
        return self.apart is None

    def listed(self, subjects: Sequence[Taught]) -> list[Taught]:
        """Subjects as a model of this way is named: in order, or, where the order does not matter, always in the same one."""
        return [*subjects] if self.goes_on else sorted(subjects, key=IN_SEQUENCE.index)


# Learning rates: the smallest of 1e-3, 3e-3 and 1e-2 at which two subjects, each alone and with a seed of its own, were in 0.7 of
# the pictures, else the best: `sequence_subjects.py --search`.
WAYS = (
    Way(name="constrained 1e-4, remembered", rate=1e-2, cut=1e-4, remembered=True),
    Way(name="constrained 1e-5, remembered", rate=1e-2, cut=1e-5, remembered=True),
    Way(name="constrained 1e-4, not remembered", rate=1e-2, cut=1e-4),
    Way(name="free", rate=3e-3),
    Way(name="distilled, weight 1", rate=3e-3, steps=400, distilled=1.0),
    Way(name="distilled, weight 10", rate=3e-3, steps=400, distilled=10.0),
    Way(name="distilled, weight 100", rate=3e-3, steps=400, distilled=100.0),
    Way(name="LoRAs added up", rate=3e-3, apart="lora"),
    Way(name="LoRAs in orthogonal bases, added up", rate=1e-2, cut=1e-4, apart="basis"),
)


class StoreWithTasks:
    """A store and what was taught since, as the source of a constraint on the layers that read the text.

    The sums of the tasks' inputs are added to those of the preserved prompts, one for one: what collecting anew with the tasks'
    prompts gives. With a `basis` `[D, F]` of orthonormal columns, changes stay within that part of the null space.
    """

    def __init__(
        self,
        base: OpenStore,
        tasks: Sequence[Store],
        threshold: float,
        basis: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> None:
        [self._site] = [site for site in base.sites() if site.timestep_free]
        sums = add_up([pooled(base.store, self._site), *(pooled(task, task.sites[0]) for task in tasks)])
        assert isinstance(sums, Sums)
        [(values, vectors)] = eigh([second_moment(sums)])
        self.null_dim = spectrum.null_dim(values, "relative_threshold", threshold)
        self.null_basis = vectors[:, : self.null_dim]
        self._projector = Projector.of(vectors, self.null_dim) if basis is None else Projector(basis, is_complement=False)
        self._base, self._tasks, self._moment = base, tasks, moment_of(sums)
        self.url = base.url

    def sites(self) -> tuple[Site, ...]:
        """The one site: the text, which every k and v reads."""
        return (self._site,)

    def prompts(self) -> tuple[str, ...]:
        """The preserved prompts, and those of the tasks."""
        return (*self._base.prompts(), *(prompt.text for task in self._tasks for prompt in task.prompts()))

    def moment(self, site: Site) -> Moment:
        """Of the preserved prompts and the tasks."""
        return self._moment

    def heldout_moment(self, site: Site) -> Moment | None:
        """Of the base's held-out prompts."""
        return self._base.heldout_moment(site)

    def projectors(self, model: Mapping[str, Any] | None = None) -> dict[str, Projector]:
        """The projector of every k and v, whatever the model."""
        return dict.fromkeys(self._site.weights, self._projector)


def bases(null_basis: np.ndarray[Any, np.dtype[np.float64]], rank: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """A basis `[D, rank]` for each subject, at random within a null space and orthogonal to those of all others.

    Orthogonal Adaptation (arXiv 2312.02432) trains dW = A B^T with B fixed; a full change under the projector B B^T is the same.
    """
    turned = null_basis @ np.linalg.qr(np.random.default_rng(0).standard_normal((null_basis.shape[1],) * 2))[0]
    return {each.name: turned[:, i * rank : (i + 1) * rank] for i, each in enumerate(IN_SEQUENCE)}


def assembled(way: Way, folders: Sequence[Path]) -> tuple[Any, list[str]]:
    """The base with the trained files in these folders, in order, and the token of each: what was taught apart is added up."""
    pipe = fresh()
    start = {name: weight.clone() for name, weight in pipe.unet.named_parameters()}
    change = {name: torch.zeros_like(weight) for name, weight in start.items()}
    tokens = []
    for folder in folders:
        files = TrainedFiles.find(folder)
        assert files is not None
        assert files.token is not None
        files.load_into(pipe)  # a LoRA is added to the weights, whole weights replace them
        tokens.append(files.token)
        if way.apart == "basis":
            for name, weight in pipe.unet.named_parameters():
                change[name] += weight.data - start[name]
                weight.data.copy_(start[name] + change[name])
    return pipe, tokens


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a constraint left for a subject: dimensions, and its captions' share of energy there over that of held-out ones."""

    null_dim: int
    ratio: float
    drift: float


def teach(
    way: Way, base: OpenStore, before: Sequence[tuple[Path, Taught]], taught: Taught, *, seed: int, folder: Path
) -> Room | None:
    """Write trained files of a subject into `folder`, taught on a model with the trained files of those `before`.

    Raises the errors of a training run. Cost: the steps of the way, and a picture for every one that is distilled.
    """
    pipe, _ = assembled(way, [place for place, _ in before])
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        pipe.save_pretrained(temporary / "model")
        write_pictures(taught, temporary / "pictures", subject.TAUGHT_ON * 5, seed)
        recipe = Recipe(
            model=str(temporary / "model"),
            output=str(temporary / "run"),
            instance_images=str(temporary / "pictures"),
            method="lora" if way.apart == "lora" else "full",
            rank=4,
            features=["k", "v"],
            word=taught.word,
            learning_rate=way.rate,
            train_batch_size=8,
            max_train_steps=way.steps,
            checkpointing_steps=way.steps,
            distill_weight=way.distilled or 0.0,
            guidance_scale=GUIDANCE,
            seed=seed,
        )
        ready = setup.set_up(recipe, "cpu", None if way.cut is None else constraint(way, base, before, taught))
        if way.distilled is not None:
            _rehearse(ready, [each for _, each in before])
        for _ in dreambooth.train(ready):
            pass
        write_trained(ready, folder)
        if ready.constraint is None:
            return None
        assert ready.estimate is not None
        assert ready.estimate.ratio is not None
        return Room(null_dim=ready.estimate.null_dim, ratio=ready.estimate.ratio, drift=max(ready.constraint.drift().values()))


def constraint(way: Way, base: OpenStore, before: Sequence[tuple[Path, Taught]], taught: Taught | None = None) -> StoreWithTasks:
    """What constrains the next subject: the base and all tasks so far; of a way with fixed bases the base and a subject's own."""
    assert way.cut is not None
    if way.goes_on:
        return StoreWithTasks(base, [Store.open(task_of(place)) for place, _ in before if way.remembered], way.cut)
    assert taught is not None
    return StoreWithTasks(base, [], way.cut, bases(StoreWithTasks(base, [], way.cut).null_basis, RANK)[taught.name])


def task_of(folder: Path) -> Path:
    """The store of what was taught in a folder of trained files."""
    return folder.with_name(f"{folder.name}.zarr")


def remember(way: Way, before: Sequence[tuple[Path, Taught]]) -> None:
    """Record the taught captions of the last subject on the model that it left. Cost: four prompts, text inputs alone."""
    pipe, _ = assembled(way, [place for place, _ in before])
    folder, taught = before[-1]
    shutil.rmtree(task_of(folder), ignore_errors=True)  # of a run that was cut off
    with tempfile.TemporaryDirectory() as name:
        pipe.save_pretrained(name)
        captions = [taught.caption(background) for background in subject.TAUGHT_ON]
        collect(task_of(folder), captions, None, {"model": name, **TEXT_ALONE})


@cache
def _of_base() -> tuple[list[str], np.ndarray[Any, Any]]:
    """The preserved prompts and the empty prompt, several times, with the latents that the base draws of each."""
    captions = [*(prompt.text for prompt in load_prompts(str(PROMPTS))), *[""] * EMPTY]
    return captions, draw_latents(fresh(), captions, 2_000_000)


def _rehearse(ready: setup.TrainingRun, earlier: Sequence[Taught]) -> None:
    """Let a run distil the preserved and the empty prompt, as the base draws them, and earlier subjects, as the model does."""
    captions, latents = _of_base()
    for each in earlier:
        replayed = [each.caption(subject.TAUGHT_ON[i % len(subject.TAUGHT_ON)]) for i in range(REPLAYED)]
        captions, latents = captions + replayed, np.concatenate([latents, draw_latents(ready.pipe, replayed, 3_000_000)])
    [size] = ready.subject.sizes
    ready.texts = EncodedTexts.of(ready.pipe, [*ready.subject.captions, *captions], [size], ready.guidance)
    ready.distillation = Distillation(
        pictures=Examples(
            latents=[*torch.from_numpy(latents)], captions=captions, framings=[Framing(size=size, original=size)] * len(captions)
        ),
        captions={caption: (caption,) for caption in captions},
        teacher=Teacher(ready.denoiser),
    )
