"""Training examples: pictures of the subject and of its class, as latents with their captions, encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nullbooth_cli.model.denoising_loss import encode_texts
from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.model.protocols import StableDiffusion
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.settings import images
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Resizing
from nullbooth_cli.tensors import generators

TextEncoding = Callable[[Sequence[str]], torch.Tensor]  # captions to [N, L, D]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N pictures as `latents`, each `[C, h, w]`, with `captions`, and `texts` `[N, L, D]`, the captions encoded; all float32.

    `repeats` are N weights: a picture of weight 3 is drawn three times as often as one of 1. Without them all weigh the same.
    """

    latents: Sequence[torch.Tensor]
    captions: Sequence[str]
    texts: torch.Tensor
    repeats: Sequence[int] = ()

    def batch(
        self, generator: torch.Generator, size: int, encode: TextEncoding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `[size, C, h, w]` and texts of pictures at random, with repetition. `encode` encodes the captions again.

        All have one size: that of a picture which is drawn first. So each picture is drawn as often as its weight says, in
        however many sizes they come.
        """
        weights = torch.tensor(self.repeats or [1] * len(self.latents))
        places = torch.arange(len(weights)).repeat_interleave(weights)
        shapes = [latents.shape for latents in self.latents]
        if len(set(shapes)) > 1:
            first = int(places[torch.randint(len(places), (), generator=generator)])
            places = torch.tensor([place for place in places.tolist() if shapes[place] == shapes[first]])
        chosen = places[torch.randint(len(places), (size,), generator=generator)]
        if encode is not None:
            texts = encode([self.captions[i] for i in chosen.tolist()])
        else:
            texts = self.texts[chosen.to(self.texts.device)]
        return torch.stack([self.latents[i] for i in chosen.tolist()]), texts


def encode_pictures(pipe: StableDiffusion, paths: Sequence[Path], resizing: Resizing) -> list[torch.Tensor]:
    """The latents of picture files, resized, each `[C, h, w]`: the means of the autoencoder's distributions."""
    return [encode_images(pipe, [resizing.apply(images.read_image(path))], pipe.device)[0] for path in paths]


def draw_class(recipe: Recipe, pipe: StableDiffusion, captions: Sequence[str]) -> Examples:
    """A picture that the untrained model draws for each caption; seeded, so every run draws the same ones."""
    latents = []
    for start in range(0, len(captions), recipe.train_batch_size):
        batch = list(captions[start : start + recipe.train_batch_size])
        with quiet_libraries():
            drawn = pipe(
                batch,
                num_inference_steps=recipe.validation_inference_steps,
                guidance_scale=recipe.guidance_scale,
                generator=generators(range(recipe.seed + start, recipe.seed + start + len(batch))),
                output_type="latent",
            )
        latents.append(drawn.images)
    return Examples(latents=[*torch.cat(latents)], captions=captions, texts=encode_texts(pipe, captions))
