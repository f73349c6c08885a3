"""The default modules of each trainer are as many as its documentation and others count; each has a word that records it."""

import json
from typing import Any

import diffusers
import pytest
from accelerate import init_empty_weights

from nullbooth_cli.model.lora_targets import default_modules, recorded_by
from tests.support.builders import ROOT

MODELS = {
    "sd15": (diffusers.UNet2DConditionModel, "StableDiffusionPipeline"),
    "sdxl": (diffusers.UNet2DConditionModel, "StableDiffusionXLPipeline"),
    "sd3": (diffusers.SD3Transformer2DModel, "StableDiffusion3Pipeline"),
    "flux": (diffusers.FluxTransformer2DModel, "FluxPipeline"),
    "pixart": (diffusers.PixArtTransformer2DModel, "PixArtSigmaPipeline"),
}


def real(architecture: str) -> Any:
    kind: Any = MODELS[architecture][0]
    part = "unet" if kind is diffusers.UNet2DConditionModel else "transformer"
    config = json.loads((ROOT / "tests/architectures" / architecture / part / "config.json").read_text())
    if "pos_embed_max_size" in config:
        config["pos_embed_max_size"] = config["sample_size"] = 8  # a table of sines, which takes its time
    with init_empty_weights():
        return kind.from_config(config)


@pytest.mark.parametrize(
    ("architecture", "counts"),
    [
        # kohya's docs count 192 and 722; Flux has 19 double blocks of 10 and 38 single ones of 3.
        ("sd15", {"diffusers": 16 * 8, "kohya": 16 * 12, "ai-toolkit": 16 * 12 + 38, "PEFT": 16 * 10 + 24}),
        ("sdxl", {"diffusers": 70 * 8, "kohya": 722, "ai-toolkit": 722 + 32, "PEFT": 722 + 21}),
        ("sd3", {"diffusers": 24 * 8 - 1, "kohya": 24 * 10 - 3 + 26, "ai-toolkit": 385, "PEFT": 385 + 7}),
        ("flux", {"diffusers": 19 * 12 + 38 * 3, "kohya": 304, "ai-toolkit": 19 * 14 + 38 * 6, "PEFT": 19 * 14 + 38 * 6 + 10}),
        ("pixart", {"ai-toolkit": 28 * 10, "PEFT": 28 * 10 + 6}),
    ],
)
def test_counts(architecture: str, counts: dict[str, int]) -> None:
    found = default_modules(real(architecture), MODELS[architecture][1])
    assert {trainer: len(modules) for trainer, modules in found.items()} == counts


@pytest.mark.parametrize(("architecture", "attends_to_text"), [("sd15", 64), ("sdxl", 280)])
def test_attention_to_text_is_a_third_of_a_usual_lora(architecture: str, attends_to_text: int) -> None:
    modules = default_modules(real(architecture), MODELS[architecture][1])["kohya"]
    assert sum(".attn2." in weight for (weight,) in modules) == attends_to_text


@pytest.mark.parametrize(
    ("weight", "shape", "word"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight", (8, 8), "attn1"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", (8, 8), "attn2 k"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", (64, 8), "ff_in"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", (8, 32), "ff_out"),
        ("mid_block.attentions.0.proj_in.weight", (8, 8, 1, 1), "proj_in"),
        ("mid_block.resnets.0.conv1.weight", (8, 8, 3, 3), "convolution"),
        ("mid_block.resnets.0.time_emb_proj.weight", (8, 8), "linear"),
        ("transformer_blocks.0.ff_context.net.2.weight", (8, 32), "ff_out"),
        ("transformer_blocks.0.norm1.linear.weight", (48, 8), "modulation"),
        ("single_transformer_blocks.0.proj_out.weight", (8, 40), "proj_out"),
        ("transformer_blocks.0.attn.add_q_proj.weight", (8, 8), "attn add_q"),
        ("proj_out.weight", (8, 8), "linear"),
    ],
)
def test_the_word_that_records_an_input(weight: str, shape: tuple[int, ...], word: str) -> None:
    assert recorded_by(weight, shape, "FluxPipeline") == word


def test_the_second_attention_of_sd3_sees_the_image_alone() -> None:
    assert recorded_by("transformer_blocks.0.attn2.to_q.weight", (8, 8), "StableDiffusion3Pipeline") == "attn1"


def test_what_a_denoiser_says_of_a_layer_counts_more_than_its_name() -> None:
    """CogVideoX calls joint attention attn1."""
    weight = "transformer_blocks.0.attn1.to_k.weight"
    assert recorded_by(weight, (8, 8), "CogVideoXPipeline", sees_text=True) == "attn1 k"
    assert recorded_by(weight, (8, 8), "CogVideoXPipeline") == "attn1"
