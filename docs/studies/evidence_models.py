"""Many models in one batch: M copies of the embedded model that differ in k and v and in one word, trained and drawn together.

A step of the embedded model is a few hundred small kernels, so a GPU runs a hundred models in the time of one. All other weights
are shared. `tests/studies/test_evidence.py` compares it with `nullbooth train`, one model at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from docs.studies.refit import GUIDANCE, STEPS, fresh
from nullbooth_cli.model.denoising_loss import NoiseProcess
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.tensors import generators

Weights = Mapping[str, torch.Tensor]  # by name, [M, O, D] each


class _Many(nn.Module):
    """A linear layer without a bias, of M models; inputs are `[M * N, L, D]`, those of a model one after another."""

    weight: torch.Tensor  # [M, O, D]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        models, outs, dim = self.weight.shape
        outputs = torch.bmm(inputs.reshape(models, -1, dim), self.weight.transpose(1, 2))
        return outputs.reshape(*inputs.shape[:-1], outs)


class Models:
    """The embedded model on a device, with places for the weights of M models.

    `start` are its k and v, `[O, D]` by name; `table` its token embeddings, `[V, D]`.
    """

    def __init__(self, device: str) -> None:
        self.pipe: Any = fresh().to(device)
        self.device = torch.device(device)
        self.process = NoiseProcess.of(self.pipe)
        unet = self.pipe.unet.requires_grad_(False)
        self.pipe.text_encoder.requires_grad_(False)
        names = [each.weight for each in find_projections(unet, ("k", "v"), "all", ())]
        self.start = {name: unet.get_parameter(name).detach().clone() for name in names}
        self._layers = {name: _Many() for name in names}
        for name, layer in self._layers.items():
            unet.set_submodule(name.removesuffix(".weight"), layer)
        embeddings = self.pipe.text_encoder.get_input_embeddings()
        self.table = embeddings.weight.detach().clone()
        self._words: tuple[torch.Tensor, torch.Tensor] | None = None
        embeddings.register_forward_hook(self._with_word)

    def _with_word(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        if self._words is None:
            return embedded
        numbers, rows = self._words
        each = len(inputs[0]) // len(numbers)
        is_word = inputs[0] == numbers.repeat_interleave(each)[:, None]
        return torch.where(is_word[..., None], rows.repeat_interleave(each, dim=0)[:, None], embedded)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token numbers `[N, L]`."""
        found = self.pipe.tokenizer(
            list(texts), padding="max_length", max_length=self.pipe.tokenizer.model_max_length, truncation=True
        )
        return torch.tensor(found.input_ids, device=self.device)

    def word_number(self, word: str) -> int:
        """The token of a word that is one."""
        [number] = self.pipe.tokenizer(word, add_special_tokens=False).input_ids
        return int(number)

    def encode(self, tokens: torch.Tensor, numbers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Texts `[M, N, L, D]` of tokens `[M, N, L]`, where each model has a row `[M, D]` for the token in `numbers` `[M]`."""
        self._words = numbers, rows
        try:
            encoded: torch.Tensor = self.pipe.text_encoder(tokens.flatten(0, 1))[0]
        finally:
            self._words = None
        return encoded.reshape(*tokens.shape[:2], *encoded.shape[1:])

    def encode_plain(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts `[N, L, D]` as the untouched model encodes them."""
        return cast(torch.Tensor, self.pipe.text_encoder(self.tokens(texts))[0])

    @contextmanager
    def using(self, weights: Weights) -> Iterator[None]:
        """Let predictions be those of models with these weights, and afterwards those of before."""
        before = {name: vars(layer).get("weight") for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            vars(layer)["weight"] = weights[name]
        try:
            yield
        finally:
            for name, layer in self._layers.items():
                vars(layer)["weight"] = before[name]

    def untrained(self, count: int) -> Weights:
        """The weights of `count` untrained models. Takes no memory."""
        return {name: weight.expand(count, *weight.shape) for name, weight in self.start.items()}

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Predictions `[M, N, C, h, w]` for latents of that shape, timesteps `[M, N]` and texts `[M, N, L, D]`, in `using`."""
        given = noisy.flatten(0, 1), timesteps.flatten(), texts.flatten(0, 1)
        predicted: torch.Tensor = self.pipe.unet(*given, return_dict=False)[0]
        return predicted.reshape(noisy.shape)

    def noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """Starting noise `[N, C, h, w]`, as a pipeline draws it from a generator for each picture."""
        channels, side = self.pipe.unet.config.in_channels, self.pipe.unet.config.sample_size
        drawn = [torch.randn((1, channels, side, side), generator=each) for each in generators(seeds)]
        return torch.cat(drawn).to(self.device)

    @torch.no_grad()
    def draw(
        self, texts: torch.Tensor, noise: torch.Tensor, *, guidance: float = GUIDANCE, scheduler: Any = None, together: int = 8192
    ) -> torch.Tensor:
        """Latents `[M, N, C, h, w]` of texts `[M, N, L, D]`, each model from the same noise, in `using`.

        `together` rows go through the model at once.
        """
        scheduler = scheduler or self.pipe.scheduler
        models = len(texts)
        empty = self.encode_plain([""])
        found = []
        step = max(together // (2 * models), 1)
        for some, start in zip(texts.split(step, dim=1), noise.split(step), strict=True):
            scheduler.set_timesteps(STEPS, device=self.device)
            latents = start.expand(models, *start.shape).flatten(0, 1) * scheduler.init_noise_sigma
            both = torch.cat([empty.expand(models, some.shape[1], *empty.shape[1:]), some], dim=1)
            for timestep in scheduler.timesteps:
                given = scheduler.scale_model_input(latents, timestep).unflatten(0, some.shape[:2]).repeat(1, 2, 1, 1, 1)
                without, with_text = self.predict(given, timestep.expand(both.shape[:2]), both).chunk(2, dim=1)
                guided = without + guidance * (with_text - without)
                latents = scheduler.step(guided.flatten(0, 1), timestep, latents, return_dict=False)[0]
            found.append(latents.unflatten(0, some.shape[:2]))
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures `[..., h, w, 3]` in [0, 1] of latents `[..., C, h, w]`, in float32."""
        scaled = latents.flatten(0, -4) / self.pipe.vae.config.scaling_factor
        shown = torch.cat([self.pipe.vae.decode(some, return_dict=False)[0] for some in scaled.split(2048)])
        shown = (shown / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return shown.reshape(*latents.shape[:-3], *shown.shape[1:])
