"""A few steps of training, as people's scripts do them, and a store whose null spaces are exact.

Two prompts and two steps leave fewer vectors than dimensions, so the null spaces contain no part of the collected inputs.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.model import load
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, features_at, small_config

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
WEIGHTS = [f"{LAYER}.{projection}.weight" for projection in ("to_q", "to_k", "to_v", "to_out.0")]
TARGETS = r"(mid_block|down_blocks\.0)\..*attn2\.(to_q|to_k|to_v|to_out\.0)"
Optimizer = Callable[[Iterable[nn.Parameter]], Any]


adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2)


def prodigy(parameters: Any) -> Any:
    from prodigyopt import Prodigy

    # It finds its step size itself, from a small one; ten steps are few for that.
    return Prodigy(parameters, weight_decay=1e-2, d0=1e-2)


def adam_8bit(parameters: Any) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="diffusers then imports it in every command: not among [dev]")
    return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, weight_decay=1e-2, min_8bit_size=1)


OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW": adamw,
    "Adam with coupled decay": partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2),
    "SGD with momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-2),
    "Prodigy": prodigy,
    "8-bit AdamW": adam_8bit,
}


def exact_store(path: Path) -> Store:
    """All four projections of one layer."""
    config = small_config(
        path,
        original_knowledge_prompts=PROMPTS[:2],
        schedule__num_denoising_steps=2,
        collect__cross_attention_layers=["mid_block*"],
        project__relative_threshold=1e-12,
    )
    return execute(config, "schedule", "collect", "covariance", "project")


def fresh_unet() -> Any:
    """The embedded denoiser in float32, all of it to train."""
    pipe = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )
    return pipe.unet.requires_grad_(True).train()


def batch(step: int, rank: int = 0) -> tuple[torch.Tensor, ...]:
    """Noisy latents `[2, 8, 8, 8]`, timesteps, text `[2, 16, 96]` and a target, all random: they respect no null space."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    latents, target = (torch.randn(2, 8, 8, 8, generator=generator) for _ in range(2))
    return latents, torch.randint(1000, (2,), generator=generator), torch.randn(2, 16, 96, generator=generator), target


def loss_of(unet: Any, step: int, rank: int = 0) -> torch.Tensor:
    """The loss on the batch of a step."""
    latents, timesteps, text, target = batch(step, rank)
    # Large, so that clipping takes effect and plain gradient descent gets somewhere in ten steps.
    return 1000 * nn.functional.mse_loss(unet(latents, timesteps, text).sample.float(), target)


def train(unet: Any, optimizer: Any, steps: Iterable[int], rank: int = 0) -> None:
    """Optimizer steps with clipped gradients."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(unet, step, rank).backward()
        nn.utils.clip_grad_norm_((p for p in unet.parameters() if p.requires_grad), 1.0)
        optimizer.step()


def add_lora(unet: Any, **config: Any) -> None:
    """A LoRA on cross-attention in the middle, which is protected, and further down, which is not."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, **{"target_modules": TARGETS, **config}))


class KohyaLora(nn.Module):
    """A LoRA that is no part of the model: it replaces the `forward` of a linear layer, as kohya's scripts do."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(linear.in_features, 4, bias=False), nn.Linear(4, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.original = [linear.forward]
        linear.forward = self.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.original[0](x) + self.up(self.down(x))
        return output


def trainable(unet: Any) -> list[nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def collected_inputs(exact: Store, weight: str) -> NDArray[np.float64]:
    """Every stored input of a weight, `[N, D]` float64."""
    site = next(site for site in exact.sites if weight in site.weights)
    rows = [features_at(exact, site, t, 0).reshape(-1, site.dim) for t in range(site.num_recorded(2))]
    return np.concatenate(rows).astype(np.float64)


def drift_on_inputs(exact: Store, weight: str, change: torch.Tensor, start: torch.Tensor) -> float:
    """norm(dW K0) / norm(W0 K0) on the stored vectors themselves."""
    k = collected_inputs(exact, weight)
    moved, output = (np.linalg.norm(rows.double().numpy() @ k.T) for rows in (change, start))
    return float(moved / output)


def changes(unet: Any, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The change of each weight by training, LoRA included, from the state dict alone."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in unet.state_dict().items()}
    found = {}
    for weight in WEIGHTS:
        found[weight] = state[weight].double() - before[weight].double()
        a, b = (state.get(weight.replace("weight", f"lora_{part}.default.weight")) for part in "AB")
        if a is not None and b is not None:
            found[weight] += 2 * b.double() @ a.double()  # alpha / r = 8 / 4
    return found


def prepared(kind: str) -> Any:
    """A model to train in full, or as a LoRA."""
    unet = fresh_unet()
    if kind == "lora":
        add_lora(unet)
    return unet


def launched(rank: int, environment: dict[str, str], store: Path, out: Path) -> None:
    """One process of a launch: trains in full and a LoRA under accelerate, and leaves drifts and state dicts behind."""
    from accelerate import Accelerator

    import nullbooth_cli as nb

    torch.set_num_threads(1)
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    accelerator, left = Accelerator(cpu=True), {}
    for kind in ("full", "lora"):
        unet = fresh_unet()
        if kind == "lora":
            add_lora(unet)
        constraint = nb.constrain(unet, nb.open_store(store))
        wrapped, optimizer = accelerator.prepare(unet, torch.optim.AdamW(trainable(unet), lr=1e-2, weight_decay=1e-2))
        for step in range(4):
            optimizer.zero_grad()
            accelerator.backward(loss_of(wrapped, step, rank))
            accelerator.clip_grad_norm_(trainable(unet), 1.0)
            optimizer.step()
        state = accelerator.get_state_dict(wrapped)
        left[kind] = {"wrapper": type(wrapped).__name__, "drift": constraint.drift(), "state": state}
    torch.save(left, out)
    accelerator.end_training()
