"""Training of M models at once, each in its own way: the loss, the optimizer and the draws of `nullbooth train`.

Models that train together have parameters of the same shapes, and the same pictures beside those of their subjects
(`Way.parts`); rates, seeds, subjects, projectors and weights of the loss are their own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from docs.studies.evidence_bank import Bank, Draw, Drawn
from docs.studies.evidence_ground import Ground, Pictures
from docs.studies.evidence_models import Models
from docs.studies.evidence_ways import Way
from docs.studies.refit_subjects import Taught
from nullbooth_cli.model.words import with_token
from nullbooth_cli.toy import world
from nullbooth_cli.training.dreambooth import generator_of
from nullbooth_cli.training.refit_solution import solve

WORD_RATE, DECAY, NORM, BLOCK = 1e-2, 1e-2, 1.0, 32  # defaults of a recipe; of orthogonal
Parameters = dict[str, torch.Tensor]  # [M, ...] each


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train."""

    way: Way
    taught: Taught
    rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """M models after `step` optimizer steps: the weights `[M, O, D]` of k and v, and the rows `[M, D]` of their words."""

    step: int
    weights: Mapping[str, torch.Tensor]
    numbers: torch.Tensor
    rows: torch.Tensor

    def of(self, places: list[int]) -> "Trained":
        """Some of the models."""
        weights = {name: each[places] for name, each in self.weights.items()}
        return Trained(step=self.step, weights=weights, numbers=self.numbers[places], rows=self.rows[places])


class Training:
    """M runs whose ways have the same `parts`."""

    def __init__(self, models: Models, ground: Ground, runs: Sequence[Run]) -> None:
        self._models, self._ground, self._runs = models, ground, runs
        [(self._is_lora, self._orthogonal, self._has_extra)] = {run.way.parts for run in runs}
        self._numbers = torch.tensor([models.word_number(run.taught.word) for run in runs], device=models.device)
        self.projectors = torch.stack([ground.projector(run.way) for run in runs]).to(models.device)
        self._constrained = self._column([run.way.cut is not None for run in runs], 3)
        self._parameters = self._started()
        self._weight = self._column([run.way.weight for run in runs], 1)
        self._pull, self._information = (self._column([getattr(run.way, key) for run in runs], 1) for key in ("pull", "fisher"))
        self._distils = self._column([run.way.distilled is not None for run in runs], 5) > 0
        self._bank = Bank(models)
        self._own = [self._bank.add(self._of(run), self._of(run).captions) for run in runs]
        self._others = [self._bank.add(*self._beside(run)) for run in runs] if self._has_extra else []
        self._bank.close()
        self._fisher = {name: each.to(models.device) for name, each in ground.fisher.items()}

    def _of(self, run: Run) -> Pictures:
        return self._ground.pictures[f"{run.taught.name} {run.seed}"]

    def _beside(self, run: Run) -> tuple[Pictures, Sequence[str]]:
        """The pictures of the second forward and their captions; for `class or empty` those of `class`, then those of `empty`."""
        if run.way.extra != "instance":
            pictures = self._ground.pictures[str(run.way.extra)]
            return pictures, pictures.captions
        pictures, word = self._of(run), run.taught.word
        wordless = [" ".join(with_token(text, word, "").split()) for text in pictures.captions]
        empty = [""] * len(wordless)
        return pictures, {"class": wordless, "empty": empty, "class or empty": [*wordless, *empty]}[str(run.way.distilled)]

    def _column(self, values: Sequence[float], dims: int) -> torch.Tensor:
        return torch.tensor(values, device=self._models.device, dtype=torch.float32).view(-1, *[1] * (dims - 1))

    def _started(self) -> Parameters:
        count, made = len(self._runs), {}
        draws = [torch.Generator().manual_seed(run.seed) for run in self._runs]
        for name, start in self._models.start.items():
            if self._orthogonal:
                made[name] = torch.zeros(count, start.shape[1] // BLOCK, BLOCK, BLOCK)
            elif self._is_lora:
                ranks = [run.way.rank or 0 for run in self._runs]
                bound = 1 / math.sqrt(start.shape[1])  # PEFT's start of lora_A
                a = [
                    (torch.rand(rank, start.shape[1], generator=draw) * 2 - 1) * bound
                    for rank, draw in zip(ranks, draws, strict=True)
                ]
                # A lower rank is filled up with zeros, which get no gradient.
                made[f"{name} A"] = torch.nn.utils.rnn.pad_sequence(a, batch_first=True)
                made[f"{name} B"] = torch.zeros(count, start.shape[0], max(ranks))
            else:
                # A free weight is its own parameter, as in a recipe, and weight decay shrinks it; a constrained one is a change.
                made[name] = start.cpu().expand(count, *start.shape) * (1 - self._constrained.cpu())
        made["word"] = self._models.table[self._numbers].cpu()
        return {name: each.clone().to(self._models.device).requires_grad_() for name, each in made.items()}

    def weights(self) -> Parameters:
        """The weights `[M, O, D]` that the parameters make."""
        found = {}
        for name, start in self._models.start.items():
            if self._orthogonal:
                found[name] = start @ rotation(self._parameters[name]).transpose(1, 2)
            elif self._is_lora:
                found[name] = start + self._parameters[f"{name} B"] @ (self._parameters[f"{name} A"] @ self.projectors)
            else:
                found[name] = self._constrained * start + self._parameters[name] @ self.projectors
        return found

    def gradients(self, batches: int) -> Parameters:
        """The mean gradient of each model's loss over the first batches, by its weights as they are now, `[M, O, D]`."""
        weights = {name: each.detach().requires_grad_() for name, each in self.weights().items()}
        total = {name: torch.zeros_like(each) for name, each in weights.items()}
        for step in range(batches):
            found = torch.autograd.grad(self._loss(weights, step).sum(), [*weights.values()])
            total = {name: each + one / batches for (name, each), one in zip(total.items(), found, strict=True)}
        return total

    def train(self, steps: Sequence[int]) -> Iterator[Trained]:
        """Train; yields the models at each of the steps, in rising order."""
        kinds = {name: "word" if name == "word" else "weights" for name in self._parameters}
        rates = {
            "word": self._column([WORD_RATE * run.way.word for run in self._runs], 1),
            "weights": self._column([run.rate * run.way.weights for run in self._runs], 1),
        }
        optimizer = _AdamW(self._parameters, {name: rates[kind] for name, kind in kinds.items()}, plain=("word",))
        for step in range(max(steps)):
            loss = self._loss(self.weights(), step)
            gradients = dict(zip(self._parameters, torch.autograd.grad(loss.sum(), [*self._parameters.values()]), strict=True))
            optimizer.step(_clipped({name: each * (optimizer.rates[name] > 0) for name, each in gradients.items()}))
            if step + 1 in steps:
                yield self._trained(step + 1)

    def _loss(self, weights: Parameters, step: int) -> torch.Tensor:
        """The loss of each model, `[M]`."""
        models = self._models
        subject, beside = self._drawn(step)
        with models.using(weights):
            loss = self._errors(subject, self._texts_of(subject)).mean(1)
        if beside is not None:
            texts = self._bank.encoded[beside.places]
            with torch.no_grad(), models.using(models.untrained(len(self._runs))):
                before = models.predict(beside.noisy, beside.timesteps, texts)
            with models.using(weights):
                errors = self._errors(replace(beside, target=torch.where(self._distils, before, beside.target)), texts).mean(1)
            loss = loss + self._weight * errors
        for name, weight in weights.items():
            squares = (weight - models.start[name]).square()
            loss = loss + self._pull * squares.flatten(1).sum(1)
            loss = loss + self._information * (self._fisher[name] * squares).flatten(1).sum(1)
        return loss

    def _drawn(self, step: int) -> tuple[Drawn, Drawn | None]:
        """The batch of each model, as `dreambooth.train` draws it, and that beside it."""
        made: dict[tuple[int, str | None, bool], tuple[Draw, Draw | None]] = {}
        keys = [(run.seed, run.way.extra, run.way.has_two_captions) for run in self._runs]
        for key, run in zip(keys, self._runs, strict=True):
            if key not in made:
                made[key] = self._draw(run, step)
        draws = [made[key] for key in keys]
        subject = self._bank.drawn(self._own, [own for own, _ in draws])
        beside = self._bank.drawn(self._others, [other or own for own, other in draws]) if self._has_extra else None
        return subject, beside

    def _draw(self, run: Run, step: int) -> tuple[Draw, Draw | None]:
        """The draw for the subject's pictures, and that for the second forward if it differs."""
        generator, count = generator_of(run.seed, step), len(self._of(run).captions)
        own = self._bank.draw(count, generator)
        if run.way.has_two_captions:
            is_empty = torch.randint(2, own.chosen.shape, generator=generator)  # in the order of `Distillation.choose`
            return own, replace(own, chosen=own.chosen + count * is_empty)
        has_others = run.way.extra not in (None, "instance")
        return own, self._bank.draw(len(self._beside(run)[1]), generator) if has_others else None

    def _texts_of(self, drawn: Drawn) -> torch.Tensor:
        """The captions `[M, N, L, D]`, encoded with the words of now."""
        return self._models.encode(self._bank.tokens[drawn.places], self._numbers, self._parameters["word"])

    def _errors(self, drawn: Drawn, texts: torch.Tensor) -> torch.Tensor:
        """The error of each picture, `[M, N]`."""
        return (self._models.predict(drawn.noisy, drawn.timesteps, texts) - drawn.target).square().flatten(2).mean(2)

    @torch.no_grad()
    def _trained(self, step: int) -> Trained:
        weights, rows = self.weights(), self._parameters["word"].detach().clone()
        maps = torch.stack([self._map(run, row) for run, row in zip(self._runs, rows, strict=True)]).to(self._models.device)
        done = {name: self._models.start[name] + (each - self._models.start[name]) @ maps for name, each in weights.items()}
        return Trained(step=step, weights=done, numbers=self._numbers, rows=rows)

    def _map(self, run: Run, row: torch.Tensor) -> torch.Tensor:
        """What a change is multiplied by after training, `[D, D]`."""
        if run.way.refit is None:
            return torch.eye(len(self._ground.values)) * run.way.scale
        texts = [run.taught.caption(background, number=number) for number, background in enumerate(world.BACKGROUNDS)]
        number = torch.tensor([self._models.word_number(run.taught.word)], device=row.device)
        inputs = self._models.encode(self._models.tokens(texts)[None], number, row[None]).flatten(0, 2).double().cpu().numpy()
        return torch.from_numpy(solve(inputs.T @ inputs / len(inputs), self._ground.preserved, run.way.refit)).float()


def rotation(free: torch.Tensor) -> torch.Tensor:
    """Block-diagonal orthogonal matrices `[M, D, D]` by Cayley's map of skew blocks, from `[M, D / 32, 32, 32]`.

    Orthogonal fine-tuning (Qiu et al., arXiv 2306.07280): W x becomes W R x.
    """
    skew = free.triu(1)
    skew = skew - skew.transpose(-1, -2)
    one = torch.eye(BLOCK, device=free.device).expand_as(skew)
    blocks = torch.linalg.solve(one + skew, one - skew)
    count, pieces = free.shape[:2]
    found = torch.zeros(count, pieces, BLOCK, pieces, BLOCK, device=free.device)
    for i in range(pieces):
        found[:, i, :, i] = blocks[:, i]
    return found.reshape(count, pieces * BLOCK, pieces * BLOCK)


def _clipped(gradients: Parameters) -> Parameters:
    """Gradients of norm `NORM` at most, over all parameters of a model together."""
    norms = torch.stack([each.flatten(1).square().sum(1) for each in gradients.values()]).sum(0).sqrt()
    factors = (NORM / (norms + 1e-6)).clamp(max=1.0)
    return {name: each * factors.view(-1, *[1] * (each.dim() - 1)) for name, each in gradients.items()}


class _AdamW:
    """AdamW with a learning rate for each model; parameters named in `plain` have no weight decay."""

    def __init__(self, parameters: Parameters, rates: Mapping[str, torch.Tensor], plain: Sequence[str]) -> None:
        self._parameters, self._plain, self._steps = parameters, plain, 0
        self.rates = {name: rates[name].view(-1, *[1] * (each.dim() - 1)) for name, each in parameters.items()}
        self._means: dict[str, Any] = {name: torch.zeros_like(each) for name, each in parameters.items()}
        self._squares: dict[str, Any] = {name: torch.zeros_like(each) for name, each in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Parameters) -> None:
        self._steps += 1
        for name, parameter in self._parameters.items():
            rate, gradient = self.rates[name], gradients[name]
            mean, square = self._means[name].lerp_(gradient, 0.1), self._squares[name].lerp_(gradient.square(), 0.001)
            if name not in self._plain:
                parameter.mul_(1 - rate * DECAY)
            spread = square.sqrt() / math.sqrt(1 - 0.999**self._steps) + 1e-8
            parameter.sub_(rate / (1 - 0.9**self._steps) * mean / spread)
