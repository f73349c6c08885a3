"""The batches of M models, drawn as `nullbooth train` draws them, from pictures that are kept on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from docs.studies.evidence_ground import Pictures
from docs.studies.evidence_models import Models

BATCH = 8


@dataclass(frozen=True)
class Draw:
    """What a step draws for N pictures: their numbers `[N]`, noise `[N, C, h, w]` and timesteps `[N]`."""

    chosen: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


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
        self._models, self._scheduler = models, models.process.scheduler
        self._latents: list[torch.Tensor] = []
        self._captions: list[str] = []
        self._starts: dict[tuple[int, tuple[str, ...]], int] = {}

    def add(self, pictures: Pictures, captions: Sequence[str]) -> int:
        """Where these pictures start."""
        key = id(pictures), tuple(captions)
        if key not in self._starts:
            self._starts[key] = len(self._captions)
            self._latents.append(pictures.latents)
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
        """A batch of so many pictures, in the order of `dreambooth.train`."""
        chosen = torch.randint(count, (BATCH,), generator=generator)
        noise = torch.randn((BATCH, *self._all.shape[1:]), generator=generator)
        return Draw(chosen, noise, torch.randint(self._scheduler.config.num_train_timesteps, (BATCH,), generator=generator))

    def drawn(self, starts: Sequence[int], draws: Sequence[Draw]) -> Drawn:
        """The batches of M models, each from the pictures at its start."""
        distinct = list({id(draw): draw for draw in draws}.values())
        which = torch.tensor([next(i for i, each in enumerate(distinct) if each is draw) for draw in draws])
        places = torch.stack([each.chosen for each in distinct])[which] + torch.tensor(starts)[:, None]
        noise = torch.stack([each.noise for each in distinct]).to(self._all.device)[which.to(self._all.device)].flatten(0, 1)
        timesteps = torch.stack([each.timesteps for each in distinct])[which].to(self._all.device)
        latents, sizes = self._all[places.flatten().to(self._all.device)], timesteps.shape
        noisy = self._scheduler.add_noise(latents, noise, timesteps.flatten())
        target = self._scheduler.get_velocity(latents, noise, timesteps.flatten())
        return Drawn(noisy.unflatten(0, sizes), target.unflatten(0, sizes), timesteps, places.to(self._all.device))
