"""The methods and attributes of diffusers' and transformers' objects that nullbooth uses, as types that need neither library.

diffusers is typed only in part, and no base class of it has all that a text-to-image pipeline does. To mypy its objects are
therefore `Any`. These protocols type our own code; what diffusers returns is assigned to them unchecked.

    Pipeline             every text-to-image pipeline: call it, move it, replace its scheduler
    LatentPipeline       one with an autoencoder
    Scheduler            timesteps and one step of denoising
    BetaScheduler        one of a diffusion model, not of flow matching
    Autoencoder          images to latents and back
    Tokenizer            texts to token ids

Attributes that only some schedulers have (`sigmas`, `alphas_cumprod`) are not part of `Scheduler`: ask `hasattr` for them, which
also narrows the type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class Scheduler(Protocol):
    """A scheduler of diffusers. `config` is its FrozenDict; `timesteps` `[T]` exist after `set_timesteps(T)`."""

    config: Mapping[str, Any]
    timesteps: torch.Tensor
    # Attributes, not methods: signatures differ from scheduler to scheduler, and nullbooth replaces the first one.
    set_timesteps: Callable[..., None]
    step: Callable[..., Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **settings: Any) -> Self:
        """A new scheduler of this class with these settings, changed by keywords."""


class BetaScheduler(Scheduler, Protocol):
    """A scheduler of a diffusion model, which has betas."""

    alphas_cumprod: torch.Tensor  # [number of training timesteps]

    def _sigma_to_t(self, sigma: float, log_sigmas: NDArray[np.float64]) -> float:
        """The timestep of a sigma, by interpolation; schedulers that walk sigmas have it."""


class Tokens(Protocol):
    """The result of a tokenizer for one text: its token ids."""

    input_ids: list[int]


class Tokenizer(Protocol):
    """A tokenizer of transformers. `model_max_length` counts the begin and end marks."""

    model_max_length: int
    unk_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, text: str, **settings: Any) -> Tokens:
        """Token ids of one text."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The entries of the vocabulary that have these ids."""

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of an entry of the vocabulary."""

    def get_vocab(self) -> Mapping[str, int]:
        """The vocabulary: ids by token, added ones too."""

    def add_tokens(self, token: str) -> int:
        """Add a token to the vocabulary; returns how many were new."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of begin, end, padding and other marks."""


class Autoencoder(Protocol):
    """An autoencoder of diffusers: images `[B, 3, H, W]` in [-1, 1], latents `[B, C, h, w]` before scaling."""

    config: Mapping[str, Any]
    encode: Callable[..., Any]
    decode: Callable[..., Any]  # pictures replace it for the time of a call, to see the latents

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""

    @property
    def device(self) -> torch.device:
        """Of its weights."""

    def to(self, target: torch.dtype | torch.device) -> Self:
        """Move or convert the weights in place."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All its weights."""


class Pipeline(Protocol):
    """A text-to-image pipeline of diffusers. Its denoisers are parts of it: `model.denoisers`."""

    scheduler: Scheduler

    @property
    def components(self) -> Mapping[str, Any]:
        """Its parts by name: modules, tokenizers, the scheduler; None for one that it was made without."""

    @property
    def device(self) -> torch.device:
        """Where its modules are now; the CPU for an offloaded pipeline."""

    @property
    def _execution_device(self) -> torch.device:
        """Where its modules run, offloaded or not."""

    def __call__(self, *prompt: Sequence[str], **arguments: Any) -> Any:
        """Denoise one image a prompt, with the arguments that `pipeline_call` finds for its class.

        The first field of the result has the pictures, or the frames of videos: with output_type "latent" a tensor, with "np" an
        array `[B, H, W, 3]` in [0, 1].
        """

    def to(self, device: torch.device) -> Self:
        """Move all its modules."""

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of the bar that a call draws."""

    def maybe_free_model_hooks(self) -> None:
        """Take an offloaded pipeline's modules off the device; nothing for others."""

    def remove_all_hooks(self) -> None:
        """End the offload: every module stays where it is."""

    def enable_model_cpu_offload(self, *, device: torch.device) -> None:
        """Keep modules in host memory, and move each to the device while it is used."""

    def enable_attention_slicing(self) -> None:
        """Compute attention in slices: less memory, more time."""

    def register_modules(self, **modules: Any) -> None:
        """Replace parts by name."""

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a pipeline folder."""

    def load_lora_weights(self, folder: str, *, weight_name: str) -> None:
        """Put a LoRA file's adapters into the modules."""

    def fuse_lora(self) -> None:
        """Add the adapters to the weights."""

    def unload_lora_weights(self) -> None:
        """Remove the adapters."""

    def save_lora_weights(self, folder: str | PathLike[str], **layers: Mapping[str, torch.Tensor]) -> None:
        """Write a LoRA file; the adapters of its denoiser are `unet_lora_layers` or `transformer_lora_layers`."""


class LatentPipeline(Pipeline, Protocol):
    """A pipeline with an autoencoder."""

    vae: Autoencoder
    vae_scale_factor: int  # pixels for one place of the latents
    prepare_latents: Callable[..., Any]  # makes the starting noise; the signature differs, and noised images replace it


class TextEncoder(Protocol):
    """A text encoder of transformers."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or release its weights."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings `[V, D]`."""

    def resize_token_embeddings(self, num_tokens: int, *, mean_resizing: bool) -> nn.Embedding:
        """Give the table this many rows: another module, which has the rows of the one before."""

    def modules(self) -> Iterator[nn.Module]:
        """All its modules."""


def config_of(module: nn.Module) -> Mapping[str, Any]:
    """The settings that a model of diffusers was built from, such as `sample_size`."""
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]  # torch types every attribute as tensor or module
    return config
