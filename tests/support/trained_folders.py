"""Folders as training runs write them, around changes of the embedded model that are made by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.edited_models import save_lora, toy

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
WEIGHT = f"{LAYER}.to_k.weight"
ROW = torch.linspace(-0.5, 0.5, 96)


def write_base(folder: Path, **changes: Any) -> Path:
    """A base.json of the embedded model, after 200 steps."""
    base = {"model": "toy", "revision": None, "variant": None, "pipeline_config": None, "step": 200, "token": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.json").write_text(json.dumps({**base, "instance_prompt": "a sks circle", **changes}))
    return folder


def write_word(folder: Path, token: str, row: torch.Tensor = ROW) -> Path:
    """The embedding of a word."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({token: row[None].contiguous()}, folder / "learned_embeds.safetensors")
    return folder


def lora_files(folder: Path, token: str | None = "<sks>", **base: Any) -> Path:
    """What a run with method lora trained, with a word or without."""
    write_base(folder, token=token, **base)
    save_lora(folder)
    return folder if token is None else write_word(folder, token)


def full_files(folder: Path, token: str | None = "sks", scale: float = 0.05, **base: Any) -> Path:
    """What a run with method full trained: one weight, and a word or none."""
    write_base(folder, token=token, **base)
    save_file({WEIGHT: changed_weight(scale)}, folder / "denoiser.safetensors")
    return folder if token is None else write_word(folder, token)


def changed_weight(scale: float = 0.05) -> torch.Tensor:
    """The weight of `full_files`."""
    weight: torch.Tensor = toy().unet.get_parameter(WEIGHT).data
    return weight + scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def training_output(folder: Path, method: str, *steps: int, result: bool = True, token: str = "sks") -> Path:
    """The output of a run: checkpoints after these steps, and, with `result`, train.json and the folder that it names."""
    for step in steps:
        write = lora_files if method == "lora" else full_files
        write(folder / f"checkpoint-{step:06d}" / "trained", token, step=step)
    if result:
        if method == "lora":
            lora_files(folder / "lora", token)
        else:
            pipe = toy()
            pipe.unet.get_parameter(WEIGHT).data.copy_(changed_weight())
            pipe.save_pretrained(folder / "pipeline")
        recipe = {"model": "toy", "revision": None, "variant": None, "pipeline_config": None, "method": method}
        (folder / "train.json").write_text(json.dumps({"token": token, "instance_prompt": "a sks circle", "recipe": recipe}))
    return folder
