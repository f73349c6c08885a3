"""What M models are measured by: their pictures on the sets of prompts, and the drift of their weights."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler

from docs.studies.evidence_ground import Ground
from docs.studies.evidence_models import Models
from docs.studies.evidence_overlaps import Mask, Overlaps, judged, mask_of, overlaps_of
from docs.studies.evidence_sets import ANOTHER_SEED, Asked, PromptSet
from docs.studies.evidence_train import Run, Trained
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import relative_drift

Sets = Callable[[Run], Sequence[PromptSet]]
AskedOf = Callable[[Run], Mapping[str, Asked]]
Picture = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Drifts:
    """norm(dW K) / norm(W K) of every weight: `measured` on the inputs K themselves in float32, `predicted` from their moment in
    float64, the `bound` norm(dW) g norm(K) / norm(W K) with the leakage g; `float16` and `bfloat16`: the largest of any weight if
    both models are saved so.
    """

    measured: list[float]
    predicted: list[float]
    bound: list[float]
    float16: float
    bfloat16: float


class Scorer:
    """Draws and judges pictures of M models. `workers` judge them, this process if there are none."""

    def __init__(self, models: Models, workers: Executor | None = None) -> None:
        self._models, self._workers = models, workers
        self._before: dict[tuple[str, ...], tuple[torch.Tensor, float]] = {}
        self._ddim = DDIMScheduler.from_config(models.pipe.scheduler.config, clip_sample=False)

    def measure(self, runs: Sequence[Run], trained: Trained, sets: Sets, asked: AskedOf, *, reads: bool) -> list[dict[str, Any]]:
        """For each run `moved` by set, `right` by set where it is to be read, and the shares that show the subject.

        Every run has as many sets as the others, drawn alike.
        """
        found: list[dict[str, Any]] = [{"moved": {}, "right": {}} for _ in runs]
        with self._models.using(trained.weights):
            for some in zip(*(sets(run) for run in runs), strict=True):
                latents = self._draw(trained, some)
                for i, (each, now) in enumerate(zip(some, latents, strict=True)):
                    before, another = self._untouched(each)
                    found[i]["moved"][each.name] = float((now - before).square().mean()) / another
                if reads and some[0].read:
                    for each, one, share in zip(some, found, self._judged(some, latents), strict=True):
                        one["right"][each.name] = share
            for named in zip(*(asked(run).items() for run in runs), strict=True):
                some_asked = [each for _, each in named]
                shares = self._judged(some_asked, self._draw(trained, some_asked))
                for (name, _), one, share in zip(named, found, shares, strict=True):
                    one[name] = share
        return found

    def _draw(self, trained: Trained, some: Sequence[PromptSet] | Sequence[Asked]) -> torch.Tensor:
        """Latents `[M, N, C, h, w]` of the captions of each model, all from the same noise."""
        tokens = torch.stack([self._models.tokens(each.captions) for each in some])
        texts = self._models.encode(tokens, trained.numbers, trained.rows)
        return self._from_noise(texts, some[0], 0)

    def _from_noise(self, texts: torch.Tensor, one: PromptSet | Asked, more: int) -> torch.Tensor:
        noise = self._models.noise(range(one.seed + more, one.seed + more + texts.shape[1]))
        if isinstance(one, Asked):
            return self._models.draw(texts, noise)
        return self._models.draw(texts, noise, guidance=one.guidance, scheduler=self._ddim if one.ddim else None)

    def _untouched(self, one: PromptSet) -> tuple[torch.Tensor, float]:
        """What the untouched model draws, and how far another seed is from it."""
        key = (one.name, *one.captions)
        if key not in self._before:
            texts = self._models.encode_plain(one.captions)[None]
            with self._models.using(self._models.untrained(1)):
                before, another = self._from_noise(texts, one, 0)[0], self._from_noise(texts, one, ANOTHER_SEED)[0]
            self._before[key] = before, float((another - before).square().mean())
        return self._before[key]

    def _judged(self, some: Sequence[PromptSet] | Sequence[Asked], latents: torch.Tensor) -> list[float]:
        """The share of pictures `[M, N]` of each model that its set's judge accepts."""
        pictures = self._models.pictures(latents).cpu().numpy()
        jobs = [(each, shown) for each, shown in zip(some, pictures, strict=True)]
        apply: Any = map if self._workers is None else self._workers.map
        masks: list[list[Mask | bool]] = [*apply(_masks, jobs)]
        wanted = [mask for row in masks for mask in row if not isinstance(mask, bool)]
        found = iter(overlaps_of(wanted, self._models.device))
        looked_up = [[mask if isinstance(mask, bool) else next(found) for mask in row] for row in masks]
        return [*apply(_share, [(*job, row) for job, row in zip(jobs, looked_up, strict=True)])]


def _masks(job: tuple[PromptSet | Asked, Picture]) -> list[Mask | bool]:
    """The mask of each picture, or what was decided without one."""
    one, pictures = job
    judges = [one.judge(number, picture) for number, picture in enumerate(pictures)]
    masks = [mask_of(judge) for judge in judges]
    return [bool(judge()) if mask is None else mask for judge, mask in zip(judges, masks, strict=True)]


def _share(job: tuple[PromptSet | Asked, Picture, list[Overlaps | bool]]) -> float:
    one, pictures, overlaps = job
    judges = [one.judge(number, picture) for number, picture in enumerate(pictures)]
    said = [known if isinstance(known, bool) else judged(judge, known) for judge, known in zip(judges, overlaps, strict=True)]
    return float(np.mean(said))


def preserved_inputs(models: Models, ground: Ground) -> torch.Tensor:
    """What k and v receive for the preserved prompts and as many empty ones, `[N, D]`."""
    return models.encode_plain([*ground.preserved_prompts, *[""] * len(ground.preserved_prompts)]).flatten(0, 1)


def drifts(models: Models, ground: Ground, run: Run, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> Drifts:
    """The drifts of one constrained model with these weights `[O, D]`; `inputs` are its `preserved_inputs`."""
    moment = Moment(kept=ground.preserved, mean=np.full(len(ground.preserved), np.nan), count=0)
    projector = ground.projector(run.way).double().numpy()
    leakage = float(np.sqrt(np.trace(projector @ ground.preserved) / np.trace(ground.preserved)))
    found = Drifts(measured=[], predicted=[], bound=[], float16=0.0, bfloat16=0.0)
    saved = {torch.float16: 0.0, torch.bfloat16: 0.0}
    for name, weight in weights.items():
        start = models.start[name]
        output = inputs @ start.T
        found.measured.append(float((inputs @ weight.T - output).norm() / output.norm()))
        one, other = weight.double().cpu().numpy(), start.double().cpu().numpy()
        found.predicted.append(relative_drift(one - other, other, moment))
        energy = moment.energy(other)[0]
        found.bound.append(float(np.linalg.norm(one - other, 2) * leakage * np.sqrt(moment.trace / energy)))
        for dtype in saved:
            rounded, was = weight.to(dtype).double().cpu().numpy(), start.to(dtype).double().cpu().numpy()
            saved[dtype] = max(saved[dtype], relative_drift(rounded - was, was, moment))
    return Drifts(**{**vars(found), "float16": saved[torch.float16], "bfloat16": saved[torch.bfloat16]})
