"""Tiny pipelines with finished stores whose null spaces are exact: fewer vectors than dimensions, or a text of few dimensions."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from nullbooth_cli.api import OpenStore, open_store
from tests.support import tiny
from tests.support.builders import execute, small_config

CHANGES: dict[str, dict[str, Any]] = {
    "sd1": {"collect__linear_layers": ["proj_in", "mid_block*.ff.net.2"]},
    "sdxl": {"collect__cross_attention_layers": ["mid_block*", "down_blocks*"]},
    "flux": {"collect__cross_attention_layers": ["transformer_blocks.0.attn"]},
    "sd3": {"collect__cross_attention_layers": ["transformer_blocks.0.attn"]},
}


@dataclass(frozen=True)
class Collected:
    """A folder with a pipeline, and a store of it."""

    folder: Path
    pipe: Any
    store: OpenStore

    def load(self) -> Any:
        """The pipeline with a fresh denoiser."""
        fresh = copy.copy(self.pipe)
        part = "transformer" if hasattr(fresh, "transformer") else "unet"
        fresh.register_modules(**{part: copy.deepcopy(getattr(self.pipe, part))})
        return fresh


def collected(name: str, folder: Path) -> Collected:
    """Two prompts, two steps, and one token of each image are collected."""
    torch.manual_seed(0)
    pipe = tiny.PIPELINES[name]()
    if name == "sdxl":  # with two resnets in a block, as the names of kohya's SDXL expect
        pipe = diffusers.StableDiffusionXLPipeline(
            **{**pipe.components, "unet": type(pipe.unet).from_config({**pipe.unet.config, "layers_per_block": 2})},
            add_watermarker=False,
        )
    for each in ("tokenizer", "tokenizer_2"):
        if hasattr(pipe, each) and name.startswith("sd") and name != "sd3":
            getattr(pipe, each).model_max_length = 8  # so that a text has fewer vectors than dimensions
    pipe.save_pretrained(folder / name)
    config = small_config(
        folder / f"{name}.zarr",
        model=str(folder / name),
        original_knowledge_prompts=["a cat", "a dog"],
        schedule__num_denoising_steps=2,
        schedule__sampler_strategy="model",
        collect__tokens_per_prompt=1,
        collect__height=16,
        collect__width=16,
        collect__branches="cond",
        project__relative_threshold=1e-12,
        project__empty="freeze",
        **CHANGES[name],
    )
    execute(config, "schedule", "collect", "covariance", "project")
    return Collected(folder / name, pipe, open_store(folder / f"{name}.zarr"))
