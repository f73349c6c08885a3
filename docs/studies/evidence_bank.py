"""The batches of M models, drawn as `nullbooth train` draws them, from pictures that are kept on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from docs.studies.evidence_ground import Pictures
from docs.studies.evidence_models import Models
from nullbooth_cli.model.denoising_loss import Noising

BATCH = 8


@dataclass(frozen=True)
class Draw:
    """What a step draws for N pictures: their numbers `[N]`, their noise and timesteps."""

    chosen: torch.Tensor
    noising: Noising


@dataclass(frozen=True)
class Drawn:
    """A batch of each model: `noisy`, `target` `[M, N, C, h, w]`, `timesteps` `[M, N]`, and the captions' `places` `[M, N]`."""

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor
    places: torch.Tensor


class Bank:
    """All pictures of M runs with their captions, one after another: `tokens` `[K, L]`, `encoded` `[K, L, D]` without a word."""

    tokens: torch.Tensor
    encoded: torch.Tensor

    def __init__(self, models: Models) -> None:
        self._models, self._process = models, models.process
        self._latents: list[torch.Tensor] = []
        self._captions: list[str] = []
        self._starts: dict[tuple[int, tuple[str, ...]], int] = {}

    def add(self, pictures: Pictures, captions: Sequence[str]) -> int:
        """The place of the first picture. With k times as many captions as pictures, the pictures are repeated k times."""
        key = id(pictures), tuple(captions)
        if key not in self._starts:
            self._starts[key] = len(self._captions)
            self._latents += [pictures.latents] * (len(captions) // len(pictures.captions))
            self._captions += captions
        return self._starts[key]

    def close(self) -> None:
        """Encode what was added."""
        self._all = torch.cat(self._latents).to(self._models.device)
        self.tokens = self._models.tokens(self._captions)
        self.encoded = torch.cat(
            [self._models.encode_plain(self._captions[i : i + 512]) for i in range(0, len(self._captions), 512)]
        )

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """A batch of `count` pictures, drawn in the order of `dreambooth.train`."""
        chosen = torch.randint(count, (BATCH,), generator=generator)
        return Draw(chosen, self._process.draw(self._all[:BATCH], generator))  # of pictures, only shape and device matter

    def drawn(self, starts: Sequence[int], draws: Sequence[Draw]) -> Drawn:
        """The batches of M models, each from the pictures at its start."""
        distinct = list({id(draw): draw for draw in draws}.values())
        which = torch.tensor([next(i for i, each in enumerate(distinct) if each is draw) for draw in draws])
        places = torch.stack([each.chosen for each in distinct])[which] + torch.tensor(starts)[:, None]
        which, places = which.to(self._all.device), places.to(self._all.device)
        noise = torch.stack([each.noising.noise for each in distinct])[which].flatten(0, 1)
        timesteps = torch.stack([each.noising.timesteps for each in distinct])[which]
        latents, noising = self._all[places.flatten()], Noising(noise, timesteps.flatten())
        noisy, target = self._process.noised(latents, noising), self._process.target(latents, noising)
        return Drawn(noisy.unflatten(0, places.shape), target.unflatten(0, places.shape), timesteps, places)
