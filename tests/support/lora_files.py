"""Adapters of the embedded model in the forms that trainers save, all with the same change of one layer."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from tests.support.edited_models import toy

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
RANK, ALPHA = 4, 2.0


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """Down `[4, 96]` and up `[80, 4]`."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(RANK, 96, generator=generator), 0.1 * torch.randn(80, RANK, generator=generator)


def change() -> torch.Tensor:
    """What every file adds to the layer at scale 1."""
    down, up = factors()
    return ALPHA / RANK * up @ down


def diffusers_file(path: Path) -> Path:
    """As `save_lora_weights` writes it; it has no alpha, which is in the factor."""
    down, up = factors()
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": ALPHA / RANK * up}
    save_file(tensors, path)
    return path


def kohya_tensors(*, text_encoder: bool = False) -> dict[str, torch.Tensor]:
    """As kohya's scripts name them."""
    down, up = factors()
    of_text = [f"lora_te_text_model_encoder_layers_0_self_attn_{part}_proj" for part in ("q", "out")]
    names = [f"lora_unet_{LAYER.replace('.', '_')}", *(of_text if text_encoder else ())]
    tensors = {}
    for name in names:
        rows = up if "unet" in name else torch.full((96, RANK), 0.01)
        tensors |= {
            f"{name}.lora_down.weight": down.clone(),
            f"{name}.lora_up.weight": rows,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def kohya_file(path: Path, *, text_encoder: bool = False) -> Path:
    save_file(kohya_tensors(text_encoder=text_encoder), path)
    return path


def peft_folder(folder: Path, config: Any = None, *, safe: bool = True) -> Path:
    """As `get_peft_model(unet, ...)` and `save_pretrained` write it."""
    model = get_peft_model(toy().unet, config or LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[LAYER]))
    layer: Any = model.get_submodule(f"base_model.model.{LAYER}")
    if hasattr(layer, "lora_A"):
        down, up = factors()
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    model.save_pretrained(str(folder), safe_serialization=safe)
    return folder
