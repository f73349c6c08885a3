"""Edited copies of the embedded model, and the small run that their edits are constrained by."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import nullbooth_cli as nb
from nullbooth_cli.collect import open_model
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config


def toy() -> Any:
    return open_model.load_model(Config(), "cpu")


def save_lora(folder: Path, *, scale: float = 0.05) -> Any:
    """A LoRA of rank 2 on to_k and to_v of the middle block; returns the U-Net that has it."""
    pipe = toy()
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=r"mid_block.*attn2\.(to_k|to_v)"))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, scale)
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return pipe.unet


def collected_run(folder: Path) -> tuple[Config, Store]:
    """A finished run of five preserved and two held-out prompts on the middle block."""
    config = small_config(
        folder / "run.zarr",
        original_knowledge_prompts=PROMPTS[:5],
        heldout_prompts=PROMPTS[6:],
        collect__cross_attention_layers=["mid_block*"],
    )
    return config, execute(config, "schedule", "collect", "covariance", "project")


def save_edited_models(store: Store, folder: Path) -> None:
    """`constrained` and `free` change the same weights alike, one through the projectors; `lora` is a LoRA."""
    projectors = nb.open_store(store.path).projectors()
    for name in ("constrained", "free"):
        pipe = toy()
        torch.manual_seed(0)
        for weight, projector in projectors.items():
            value = pipe.unet.get_parameter(weight)
            change = 0.5 * value.std() * torch.randn_like(value)
            value.data += projector.apply(change) if name == "constrained" else change
        if name == "free":
            pipe.unet.conv_out.bias.data += 0.01
        pipe.save_pretrained(folder / name)
    save_lora(folder / "lora")
