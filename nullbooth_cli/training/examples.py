"""What a training looks at: pictures of the subject and of its class, as latents with their captions, encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.latents import encode_images
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.settings import images
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.tensors import generators


@dataclass(frozen=True)
class Examples:
    """Pictures as latents `[N, C, h, w]`, and their captions, also as the denoiser takes them, `[N, L, D]`; in float32."""

    latents: torch.Tensor
    captions: Sequence[str]
    texts: torch.Tensor

    def batch(
        self, generator: torch.Generator, size: int, encode: Callable[[Sequence[str]], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and texts of so many pictures at random; `encode` gives the texts anew."""
        chosen = torch.randint(len(self.latents), (size,), generator=generator)
        if encode is not None:
            texts = encode([self.captions[i] for i in chosen.tolist()])
        else:
            texts = self.texts[chosen.to(self.texts.device)]
        return self.latents[chosen.to(self.latents.device)], texts


def encode_pictures(pipe: Any, paths: Sequence[Path]) -> torch.Tensor:
    """Latents `[N, C, h, w]` of pictures that have the size the pipeline draws; the mean of what the autoencoder answers."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pictures = []
    for path in paths:
        picture = images.read_image(path)
        if picture.size != (size, size):
            raise ConfigError(
                f"{path} is {picture.width} x {picture.height} pixels, the model draws {size} x {size}", "crop and resize it"
            )
        pictures.append(picture)
    return encode_images(pipe, pictures, pipe.device)


@quiet_libraries()
def encode_texts(pipe: Any, captions: Sequence[str]) -> torch.Tensor:
    """What the denoiser is given for captions, `[N, L, D]`. Differentiable where the text encoder trains."""
    texts: torch.Tensor = pipe.encode_prompt(list(captions), pipe.device, 1, False)[0]
    return texts


@quiet_libraries()
def draw_class(recipe: Recipe, pipe: Any) -> Examples:
    """What the untrained model draws for the class prompts, as latents with their captions; seeded, so always the same."""
    assert recipe.class_prompts is not None
    known = [prompt.text for prompt in load_prompts(recipe.class_prompts, "class_prompts")]
    captions = [known[i % len(known)] for i in range(recipe.class_images)]
    latents = []
    for start in range(0, len(captions), recipe.train_batch_size):
        batch = captions[start : start + recipe.train_batch_size]
        drawn = pipe(
            batch,
            num_inference_steps=recipe.validation_inference_steps,
            guidance_scale=recipe.guidance_scale,
            generator=generators(range(recipe.seed + start, recipe.seed + start + len(batch))),
            output_type="latent",
        )
        latents.append(drawn.images)
    return Examples(torch.cat(latents), captions, encode_texts(pipe, captions))
