"""What an optimizer step costs, before any weights are loaded: memory from shapes alone, and seconds from one timed step."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from nullbooth_cli.model.conditioning import Conditioning, capture
from nullbooth_cli.model.denoising_loss import NoiseProcess, predict
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.protocols import LatentPipeline, config_of
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Size
from nullbooth_cli.training import optimizers
from nullbooth_cli.training.trainable import make_trainable

FLOAT = 4  # bytes: weights, gradients and both moments of AdamW are float32
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of training with a recipe.

    `seconds` are those of one optimizer step on this device. `device_bytes` are weights, gradients, the optimizer's moments and
    what the backward pass needs; text encoder and autoencoder are not in it. `checkpoint_bytes` and `result_bytes` are on disk.
    """

    seconds: float
    device_bytes: int
    checkpoint_bytes: int
    result_bytes: int


def step_cost(recipe: Recipe, pipe: LatentPipeline, size: Size, device: torch.device) -> StepCost:
    """The cost of a step of `recipe` on pictures of a size; `pipe` is its pipeline without weights.

    Cost: the denoiser with random weights on the device, and two forwards and backwards of a batch, up to six of a second.
    """
    denoiser = _empty(denoiser_of(pipe), device)
    make_trainable(denoiser, find_projections(denoiser, tuple(recipe.features), "all", recipe.linear_layers), recipe)
    denoiser.train()
    weights = sum(parameter.numel() for parameter in denoiser.parameters())
    sizes = [parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad]
    trained, copies = sum(sizes), 2 if recipe.ema_decay is None else 3  # of a checkpoint: to resume, in `trained/`, and averages
    others = sum(parameter.numel() for parameter in pipe.vae.parameters())
    saved, seconds = _forward_and_backward(denoiser, _inputs(recipe, pipe, size, device), recipe, device)
    is_lora = recipe.method == "lora"
    return StepCost(
        seconds=seconds * recipe.gradient_accumulation_steps * (1 if recipe.class_prompts is None else 2),
        device_bytes=FLOAT * (weights + 3 * trained) + saved,
        checkpoint_bytes=optimizers.state_bytes(recipe.optimizer, sizes) + copies * FLOAT * trained,
        result_bytes=FLOAT * (trained if is_lora else weights + others),
    )


def _empty(model: nn.Module, device: torch.device) -> nn.Module:
    """A denoiser like this one, with small random weights on a device."""
    with torch.device("meta"):
        made: nn.Module = type(model).from_config(config_of(model))  # type: ignore[attr-defined]  # diffusers' ConfigMixin
    made = made.to_empty(device=device)
    for tensor in [*made.parameters(), *made.buffers()]:
        nn.init.normal_(tensor, std=0.02)
    return made


def _inputs(recipe: Recipe, pipe: LatentPipeline, size: Size, device: torch.device) -> dict[str, Any]:
    """The arguments of `predict` for a batch: everything random, in its shape."""
    batch, (width, height) = recipe.train_batch_size, (side // pipe.vae_scale_factor for side in size)
    process = NoiseProcess.of(pipe)
    noisy = torch.randn(batch, pipe.vae.config["latent_channels"], height, width, device=device)
    given = capture(pipe, [""], size=size, guidance=process.family.guidance).rows([0] * batch)

    def filled(value: Any) -> Any:
        return torch.ones_like(value, device=device) if isinstance(value, torch.Tensor) else value

    conditioning = Conditioning(
        by_row={name: filled(value) for name, value in given.by_row.items()},
        shared={name: filled(value) for name, value in given.shared.items()},
    )
    timesteps = torch.full((batch,), 500, device=device)
    return {"process": process, "noisy": noisy, "timesteps": timesteps, "conditioning": conditioning}


def _forward_and_backward(
    denoiser: nn.Module, inputs: Mapping[str, Any], recipe: Recipe, device: torch.device
) -> tuple[int, float]:
    """The bytes that the backward pass keeps, and the seconds of a forward and backward."""
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = HALF.get(recipe.mixed_precision)

    def step(hooks: AbstractContextManager[Any]) -> None:
        with hooks, torch.autocast(device.type, half, enabled=half is not None):
            loss = predict(denoiser, **inputs).float().square().mean()
        loss.backward()

    step(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
    times: list[float] = []
    while sum(times) < 1 and len(times) < 5:  # short steps vary with what else the machine does
        began = _now(device)
        step(nullcontext())
        times.append(_now(device) - began)
    return sum(saved.values()), median(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
