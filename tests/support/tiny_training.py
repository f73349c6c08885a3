"""A few steps of training, as people's scripts do them, and a store whose null spaces are exact.

Two prompts and two steps leave fewer vectors than dimensions, so the null spaces hold nothing at all of what was collected.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nullbooth_cli.model import load
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
WEIGHTS = [f"{LAYER}.{projection}.weight" for projection in ("to_q", "to_k", "to_v", "to_out.0")]
TARGETS = r"(mid_block|down_blocks\.0)\..*attn2\.(to_q|to_k|to_v|to_out\.0)"
Optimizer = Callable[[Iterable[nn.Parameter]], Any]


def exact_store(path: Path) -> Store:
    config = small_config(
        path,
        original_knowledge_prompts=PROMPTS[:2],
        schedule__num_denoising_steps=2,
        collect__cross_attention_layers=["mid_block*"],
        project__relative_threshold=1e-12,
    )
    return execute(config, "schedule", "collect", "covariance", "project")


def fresh_unet() -> Any:
    pipe = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )
    return pipe.unet.requires_grad_(True).train()


def batch(step: int, rank: int = 0) -> tuple[torch.Tensor, ...]:
    """Noisy latents `[2, 8, 8, 8]`, timesteps, text `[2, 16, 96]` and a target, all random: none of it respects a null space."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    latents, target = (torch.randn(2, 8, 8, 8, generator=generator) for _ in range(2))
    return latents, torch.randint(1000, (2,), generator=generator), torch.randn(2, 16, 96, generator=generator), target


def loss_of(unet: Any, step: int, rank: int = 0) -> torch.Tensor:
    latents, timesteps, text, target = batch(step, rank)
    # Large, so that clipping has something to clip and plain gradient descent gets somewhere in ten steps.
    return 1000 * nn.functional.mse_loss(unet(latents, timesteps, text).sample.float(), target)


def train(unet: Any, optimizer: Any, steps: Iterable[int], rank: int = 0) -> None:
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


def trainable(unet: Any) -> list[nn.Parameter]:
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


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
