"""Training examples: pictures of the subject and of its class, as latents with their captions, encoded once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nullbooth_cli.model.conditioning import Conditioning, capture, joined
from nullbooth_cli.model.latents import encode_images, size_settings, unpack_latents
from nullbooth_cli.model.pipeline_call import call_of
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.settings import images
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Framing, Resizing, Size
from nullbooth_cli.tensors import generators

TextEncoding = Callable[[Sequence[str], Size], Conditioning]  # captions of pictures of one size
TOGETHER = 16  # captions in one call of a pipeline


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """Captions that were encoded once for each size of their pictures; a `TextEncoding` of these captions and sizes.

    `rows` has the place of each caption.
    """

    conditionings: Mapping[Size, Conditioning]
    rows: Mapping[str, int]

    @classmethod
    def of(
        cls, pipe: LatentPipeline, captions: Sequence[str], sizes: Collection[Size], guidance: float, together: int = TOGETHER
    ) -> "EncodedTexts":
        """Encode captions for pictures of each of these sizes. Cost: the text encoders on each caption, once for each size."""
        texts = list(dict.fromkeys(captions))
        found = {}
        for size in sizes:
            parts: list[Conditioning] = []
            for start in range(0, len(texts), together):
                batch, like = texts[start : start + together], parts[0] if parts else None
                parts.append(capture(pipe, batch, size=size, guidance=guidance, like=like))
            found[size] = joined(parts)
        return cls(conditionings=found, rows={text: place for place, text in enumerate(texts)})

    def __call__(self, captions: Sequence[str], size: Size) -> Conditioning:
        return self.conditionings[size].rows([self.rows[text] for text in captions])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures of one size as `latents` `[B, C, h, w]`, with B captions and B framings."""

    latents: torch.Tensor
    captions: Sequence[str]
    framings: Sequence[Framing]

    def conditioning(self, encode: TextEncoding, captions: Sequence[str] | None = None) -> Conditioning:
        """What the denoiser receives for these pictures with their captions, or with others."""
        size = self.framings[0].size
        return framed(encode(self.captions if captions is None else captions, size), self.framings)


def framed(conditioning: Conditioning, framings: Sequence[Framing]) -> Conditioning:
    """Conditioning that tells the denoiser what was done to each picture, if it asks: Stable Diffusion XL does.

    Its six numbers are height and width of the original, top and left edge of the crop, and height and width now.
    """
    name = "added_cond_kwargs.time_ids"
    if name not in conditioning.by_row:
        return conditioning
    numbers = [[*each.original[::-1], *each.corner[::-1], *each.size[::-1]] for each in framings]
    return conditioning.with_rows({name: torch.tensor(numbers).to(conditioning.by_row[name])})


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N pictures as `latents`, each `[C, h, w]` float32, with their captions and framings.

    `repeats` are N weights: a picture of weight 3 is drawn three times as often as one of 1. Without them all weigh the same.
    """

    latents: Sequence[torch.Tensor]
    captions: Sequence[str]
    framings: Sequence[Framing]
    repeats: Sequence[int] = ()

    @property
    def sizes(self) -> list[Size]:
        """The sizes of the pictures, each once."""
        return list(dict.fromkeys(each.size for each in self.framings))

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` pictures at random, with repetition.

        All have one size: that of a picture which is drawn first. So each picture is drawn as often as its weight says, in
        however many sizes they come.
        """
        weights = torch.tensor(self.repeats or [1] * len(self.latents))
        places = torch.arange(len(weights)).repeat_interleave(weights)
        sizes = [each.size for each in self.framings]
        if len(self.sizes) > 1:
            first = int(places[torch.randint(len(places), (), generator=generator)])
            places = torch.tensor([place for place in places.tolist() if sizes[place] == sizes[first]])
        chosen = places[torch.randint(len(places), (size,), generator=generator)].tolist()
        return Batch(
            latents=torch.stack([self.latents[i] for i in chosen]),
            captions=[self.captions[i] for i in chosen],
            framings=[self.framings[i] for i in chosen],
        )


def encode_pictures(pipe: LatentPipeline, paths: Sequence[Path], resizing: Resizing) -> tuple[list[torch.Tensor], list[Framing]]:
    """The latents of picture files, resized, each `[C, h, w]`, and their framings.

    Latents are the means of the autoencoder's distributions.
    """
    latents, framings = [], []
    for path in paths:
        image = images.read_image(path)
        latents.append(encode_images(pipe, [resizing.apply(image)], pipe._execution_device)[0])
        framings.append(resizing.framing(image.size))
    return latents, framings


def guidance_of(recipe: Recipe, pipeline: type) -> float:
    """The guidance_scale with which pictures are drawn: the recipe's, or the default of pipelines of this class."""
    if recipe.guidance_scale is not None:
        return recipe.guidance_scale
    own = call_of(pipeline).own_guidance
    assert own is not None  # every family that trains has a guidance scale
    return own


def draw_class(recipe: Recipe, pipe: LatentPipeline, captions: Sequence[str], size: Size) -> Examples:
    """A picture of this size that the untrained model draws for each caption; seeded, so every run draws the same ones."""
    latents = []
    for start in range(0, len(captions), recipe.train_batch_size):
        batch = list(captions[start : start + recipe.train_batch_size])
        with quiet_libraries():
            drawn = pipe(
                batch,
                num_inference_steps=recipe.validation_inference_steps,
                guidance_scale=guidance_of(recipe, type(pipe)),
                generator=generators(range(recipe.seed + start, recipe.seed + start + len(batch))),
                output_type="latent",
                **size_settings(pipe, size),
            )
        latents.append(unpack_latents(pipe, drawn.images, size))
    framing = Framing(size=size, original=size)
    return Examples(latents=[*torch.cat(latents).float()], captions=captions, framings=[framing] * len(captions))
