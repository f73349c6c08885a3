"""The dtypes of a training run, as trainers' scripts have them.

- What trains is float32, and so are the projection P and the start of a constrained weight.
- The other weights of the denoiser, and the text encoders, have the recipe's `dtype`. In a half precision, forwards run under
  autocast in the same precision: the recipe refuses anything else.
- The autoencoder is float32: those of Stable Diffusion and SDXL overflow in float16.
"""

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

HALF = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}  # by mixed_precision


_of_earlier_run: str | None = None


def allow_another(mixed_precision: str) -> None:
    """Let a run have another precision than an earlier run of this process: accelerate keeps that of the first.

    Raises ConfigError if the one that it keeps is the program's own: it may be in use.
    """
    global _of_earlier_run
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and (kept := AcceleratorState().mixed_precision) != mixed_precision:
        if kept != _of_earlier_run:
            raise ConfigError(
                f"mixed_precision is {mixed_precision}, and this process has an Accelerator of {kept}: accelerate keeps one "
                "precision for a process",
                f"set mixed_precision to {kept}, or train in a process of its own",
            )
        AcceleratorState._reset_state()
    _of_earlier_run = mixed_precision


def require_there(mixed_precision: str, device: torch.device) -> None:
    """Raise ConfigError for a precision that a device does not have."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision: fp16 would be float32 on the CPU: accelerate leaves it out",
            "set mixed_precision to no or bf16",
        )


def loaded_in_float32(recipe: Recipe, collected_in: str | None) -> tuple[str, ...]:
    """The parts of a pipeline that are loaded in float32 whatever `dtype` is.

    The denoiser is one of them with method full, so that the weights that train start as they are in the files, and under a
    constraint that was collected in another dtype (`collected_in`; None without a constraint): it is compared with the weights
    that were collected from before it is cast.
    """
    if recipe.dtype == "float32":
        return ()
    is_compared = collected_in is not None and collected_in != recipe.dtype
    return ("vae", "unet", "transformer") if recipe.method == "full" or is_compared else ("vae",)


def cast(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights and buffers of a denoiser that do not train a dtype, in place; `constrain()` comes before it.

    Modules that their class keeps in float32 stay so.
    """
    kept: list[str] = getattr(denoiser, "_keep_in_fp32_modules", None) or []
    for name, tensor in [*denoiser.named_parameters(), *denoiser.named_buffers()]:
        if tensor.is_floating_point():
            stays = tensor.requires_grad or any(part in kept for part in name.split("."))
            tensor.data = tensor.data if stays else tensor.data.to(dtype)


def autocast(recipe: Recipe, accelerator: "Accelerator") -> contextlib.AbstractContextManager[object]:
    """The context for forwards of modules that accelerate has not wrapped: autocast if their weights are in half precision."""
    return contextlib.nullcontext() if recipe.dtype == "float32" else accelerator.autocast()
