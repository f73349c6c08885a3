"""What an optimizer step costs, before any weights are loaded: memory from shapes alone, and seconds from one timed step."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from nullbooth_cli.model.denoising_loss import predict
from nullbooth_cli.model.device import free_memory
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Size
from nullbooth_cli.training import optimizers
from nullbooth_cli.training.memory import FLOAT, TrainingMemory, empty_denoiser, inputs_of, losses_of, training_memory
from nullbooth_cli.training.precision import HALF


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of training with a recipe.

    `seconds` are those of one optimizer step on this device; None where it has less memory free than that step takes.
    `checkpoint_bytes` and `result_bytes` are on disk.
    """

    seconds: float | None
    memory: TrainingMemory
    checkpoint_bytes: int
    result_bytes: int


def step_cost(
    recipe: Recipe,
    pipe: LatentPipeline,
    encoders: Mapping[str, nn.Module],
    size: Size,
    device: torch.device,
    *,
    factors: int = 0,
) -> StepCost:
    """The cost of a step of `recipe` on pictures of a size; the arguments are those of `training_memory`.

    Cost: that of `training_memory`; if it fits, the denoiser with random weights on the device, and two forwards and backwards of
    a batch, up to six of a second.
    """
    memory = training_memory(recipe, pipe, encoders, size, on_cpu=device.type == "cpu", factors=factors)
    denoiser = empty_denoiser(recipe, pipe)
    sizes = [parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad]
    trained, copies = sum(sizes), 2 if recipe.ema_decay is None else 3  # of a checkpoint: to resume, in `trained/`, and averages
    fits = memory.phases["train"] <= free_memory(device)
    # A teacher's forward is a third of a forward and backward.
    forwards = recipe.gradient_accumulation_steps * (losses_of(recipe) + (0 if recipe.distill_captions is None else 1 / 3))
    return StepCost(
        seconds=forwards * _seconds(denoiser, recipe, pipe, size, device) if fits else None,
        memory=memory,
        checkpoint_bytes=optimizers.state_bytes(recipe.optimizer, sizes) + copies * FLOAT * trained,
        result_bytes=FLOAT * trained if recipe.method == "lora" else memory.weights + sum(memory.helpers.values()),
    )


def _seconds(denoiser: nn.Module, recipe: Recipe, pipe: LatentPipeline, size: Size, device: torch.device) -> float:
    """The seconds of a forward and backward of a batch; `denoiser` is empty, and gets small random weights on the device."""
    denoiser = denoiser.to_empty(device=device)
    for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
        nn.init.normal_(tensor, std=0.02)
    half, given = HALF[recipe.mixed_precision], inputs_of(recipe, pipe, size, recipe.train_batch_size, device)
    _forward_and_backward(denoiser, given, half, device)
    times: list[float] = []
    while sum(times) < 1 and len(times) < 5:  # short steps vary with what else the machine does
        began = _now(device)
        _forward_and_backward(denoiser, given, half, device)
        times.append(_now(device) - began)
    return median(times)


def _forward_and_backward(denoiser: nn.Module, given: Mapping[str, Any], half: torch.dtype | None, device: torch.device) -> None:
    with torch.autocast(device.type, half, enabled=half is not None):
        loss = predict(denoiser, **given).float().square().mean()
    loss.backward()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
