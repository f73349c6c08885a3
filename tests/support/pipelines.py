"""A pipeline of a few lines around the denoiser of `attention.py`: guidance as a test wants it."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.support.attention import Denoiser

Rows = Sequence[Sequence[str]]  # by forward of a step: the rows of each prompt, "prompt" or "empty"
STACKED: Rows = [["empty", "prompt"]]


def text_of(prompt: str) -> torch.Tensor:
    """`[3, 6]`, another one for each text."""
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode())))


class SmallScheduler:
    """Takes a tenth of what is predicted."""

    def step(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return latents - 0.1 * predicted


class SmallPipeline:
    """Runs `rows(step)` in each step of `num_inference_steps`. `timestep(step, turn)` is what the denoiser is told."""

    def __init__(
        self,
        rows: Callable[[int], Rows] = lambda _: STACKED,
        *,
        denoiser: Denoiser | None = None,
        second: Denoiser | None = None,
        boundary: int = 0,
        text: Callable[[torch.Tensor], torch.Tensor] = lambda text: text,
        timestep: Callable[[int, int], float] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.unet = denoiser or Denoiser()
        self.transformer_2, self._boundary = second, boundary
        self._rows, self._text, self._timestep = rows, text, timestep
        self.scheduler = SmallScheduler()
        self.device = self._execution_device = torch.device("cpu")

    def maybe_free_model_hooks(self) -> None:
        """Nothing is offloaded."""

    def __call__(
        self,
        prompt: Sequence[str],
        *,
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        guidance_scale: float = 4.0,  # `rows` say what guidance there is
        **_: Any,
    ) -> Any:
        latents = torch.stack([torch.randn(5, 4, generator=each) for each in generator])
        encoded = {
            kind: torch.stack([text_of(each) for each in texts])
            for kind, texts in (("prompt", prompt), ("empty", [""] * len(prompt)))
        }
        for step in range(num_inference_steps):
            denoiser = self.transformer_2 if self.transformer_2 is not None and step >= self._boundary else self.unet
            predicted = torch.zeros_like(latents)
            for turn, kinds in enumerate(self._rows(step)):
                told = {} if self._timestep is None else {"timestep": torch.tensor([self._timestep(step, turn)])}
                text = self._text(torch.cat([encoded[kind] for kind in kinds]))
                predicted = predicted + denoiser(torch.cat([latents] * len(kinds)), text, **told).chunk(len(kinds))[-1]
            latents = self.scheduler.step(predicted, latents)
        return (latents,)
