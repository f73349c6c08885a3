"""What each attention layer attends to, in the denoisers of diffusers, built on the meta device from their own configs."""

import importlib
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from nullbooth_cli.model.attention_layers import _JOINING, _ONE_SEQUENCE, _POOLING
from nullbooth_cli.model.projections import attention_of, find_projections

MODELS = Path(diffusers.__file__).parent / "models"
# The settings that make each denoiser small in depth, and what each of its attention layers attends to.
DENOISERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "AuraFlowTransformer2DModel": (
        {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
        {"joint_transformer_blocks.0.attn": "joint", "single_transformer_blocks.0.attn": "joint"},
    ),
    "BriaFibo2Transformer2DModel": (
        {"n_layers": 1, "n_refiner_layers": 1, "injection_layer_ids": (0,), "perceiver_num_layers": 1},
        {
            "noise_refiner.0.attention": "self",
            "perceiver.layers.0.cross_attention": "text",
            "perceiver.layers.0.self_attention": "text",
            "layers.0.attention": "joint",
            "layers.0.cross_attention": "cross",
        },
    ),
    "CogVideoXTransformer3DModel": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "joint"}),
    "CogView3PlusTransformer2DModel": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "joint"}),
    "CogView4Transformer2DModel": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "joint"}),
    "Cosmos3OmniTransformer": ({"num_hidden_layers": 1}, {"layers.0.self_attn": "joint"}),
    "EasyAnimateTransformer3DModel": (
        {"num_layers": 2, "mmdit_layers": 1, "in_channels": 4, "out_channels": 4, "patch_size": 2},
        {"transformer_blocks.0.attn1": "joint", "transformer_blocks.1.attn1": "joint"},
    ),
    "ErnieImageTransformer2DModel": ({"num_layers": 1}, {"layers.0.self_attention": "joint"}),
    "Flux2Transformer2DModel": (
        {"num_layers": 1, "num_single_layers": 1},
        {"transformer_blocks.0.attn": "joint", "single_transformer_blocks.0.attn": "joint"},
    ),
    "GlmImageTransformer2DModel": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "joint"}),
    "HiDreamImageTransformer2DModel": (
        {"num_layers": 1, "num_single_layers": 1, "patch_size": 2, "caption_channels": [8, 8], "llama_layers": [0, 1]},
        {"double_stream_blocks.0.block.attn1": "joint", "single_stream_blocks.0.block.attn1": "joint"},
    ),
    "HunyuanDiT2DModel": (
        {"num_layers": 1, "in_channels": 4, "patch_size": 2},
        {"blocks.0.attn1": "self", "blocks.0.attn2": "cross"},
    ),
    "HunyuanVideoTransformer3DModel": (
        {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
        {
            "context_embedder.token_refiner.refiner_blocks.0.attn": "text",
            "transformer_blocks.0.attn": "joint",
            "single_transformer_blocks.0.attn": "joint",
        },
    ),
    "Ideogram4Transformer2DModel": ({"num_layers": 1}, {"layers.0.attention": "joint"}),
    "JoyImageEditTransformer3DModel": ({"num_layers": 1}, {"double_blocks.0.attn": "joint"}),
    "Kandinsky3UNet": (
        {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "groups": 4, "attention_head_dim": 8},
        {
            "add_time_condition.attention": "text",
            "down_blocks.1.attentions.0.attention": "self",
            "down_blocks.1.attentions.1.attention": "cross",
            "up_blocks.0.attentions.0.attention": "self",
            "up_blocks.0.attentions.1.attention": "cross",
            "up_blocks.1.attentions.0.attention": "self",
            "up_blocks.1.attentions.1.attention": "cross",
        },
    ),
    "Kandinsky5Transformer3DModel": (
        {"num_text_blocks": 1, "num_visual_blocks": 1},
        {
            "text_transformer_blocks.0.self_attention": "text",
            "visual_transformer_blocks.0.self_attention": "self",
            "visual_transformer_blocks.0.cross_attention": "cross",
        },
    ),
    "Krea2Transformer2DModel": (
        {"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 0},
        {"text_fusion.layerwise_blocks.0.attn": "text", "transformer_blocks.0.attn": "joint"},
    ),
    "LTX2VideoTransformer3DModel": (
        {"num_layers": 1},
        {
            "transformer_blocks.0.attn1": "self",
            "transformer_blocks.0.audio_attn1": "self",
            "transformer_blocks.0.attn2": "cross",
            "transformer_blocks.0.audio_attn2": "cross",
            "transformer_blocks.0.audio_to_video_attn": "self",
            "transformer_blocks.0.video_to_audio_attn": "self",
        },
    ),
    "Lumina2Transformer2DModel": (
        {"num_layers": 1, "num_refiner_layers": 1},
        {"noise_refiner.0.attn": "self", "context_refiner.0.attn": "text", "layers.0.attn": "joint"},
    ),
    "LuminaNextDiT2DModel": ({"num_layers": 1, "num_kv_heads": 4}, {"layers.0.attn1": "self", "layers.0.attn2": "cross"}),
    "MochiTransformer3DModel": ({"num_layers": 1}, {"time_embed.pooler": "text", "transformer_blocks.0.attn1": "joint"}),
    "OmniGenTransformer2DModel": (
        {"num_layers": 1, "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}},
        {"layers.0.self_attn": "joint"},
    ),
    "PRXTransformer2DModel": ({"depth": 1}, {"blocks.0.attention": "joint"}),
    "PriorTransformer": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "joint"}),
    "SanaTransformer2DModel": ({"num_layers": 1}, {"transformer_blocks.0.attn1": "self", "transformer_blocks.0.attn2": "cross"}),
    "StableCascadeUNet": (
        {
            "block_out_channels": (32, 32),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "self_attn": (True, False),
        },
        {
            "down_blocks.0.2.attention": "joint",
            "down_blocks.1.2.attention": "cross",
            "up_blocks.0.2.attention": "cross",
            "up_blocks.1.2.attention": "joint",
        },
    ),
    "WanTransformer3DModel": (
        {"num_layers": 1, "added_kv_proj_dim": 5120, "image_dim": 8},
        {"blocks.0.attn1": "self", "blocks.0.attn2": "cross"},
    ),
    "ZImageTransformer2DModel": (
        {"n_layers": 1, "n_refiner_layers": 1},
        {"noise_refiner.0.attention": "self", "context_refiner.0.attention": "text", "layers.0.attention": "joint"},
    ),
}


def on_meta(name: str, **changes: Any) -> nn.Module:
    cls: Any = getattr(diffusers, name, None) or getattr(importlib.import_module("diffusers.models.unets"), name)
    with torch.device("meta"):
        made: nn.Module = cls(**{**(DENOISERS[name][0] if name in DENOISERS else {}), **changes})
    return made


def tokens(model: nn.Module) -> dict[str, tuple[str, str]]:
    """For each layer the features that receive text alone, and those that receive text and image as one sequence."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for each in find_projections(model, ("q", "k", "v", "out"), ["*"]):
        text, both = found.setdefault(each.layer, ([], []))
        text += [each.feature] * each.from_text
        both += [each.feature] * each.from_both
    return {layer: (" ".join(text), " ".join(both)) for layer, (text, both) in found.items()}


@pytest.mark.parametrize("name", DENOISERS)
def test_what_each_layer_attends_to(name: str) -> None:
    assert {layer: each.kind for layer, each in attention_of(on_meta(name)).items()} == DENOISERS[name][1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WanTransformer3DModel", {"blocks.0.attn2": ("k v", "")}),
        ("CogVideoXTransformer3DModel", {"transformer_blocks.0.attn1": ("", "q k v out")}),
        ("MochiTransformer3DModel", {"time_embed.pooler": ("", ""), "transformer_blocks.0.attn1": ("add_k add_v add_q", "")}),
        ("Cosmos3OmniTransformer", {"layers.0.self_attn": ("q k v out", "")}),
        ("PRXTransformer2DModel", {"blocks.0.attention": ("add_k", "")}),
        (
            "Flux2Transformer2DModel",
            {
                "transformer_blocks.0.attn": ("add_q add_k add_v add_out", ""),
                "single_transformer_blocks.0.attn": ("", "k out"),
            },
        ),
        (
            "HiDreamImageTransformer2DModel",
            {
                "double_stream_blocks.0.block.attn1": ("add_q add_k add_v add_out", ""),
                "single_stream_blocks.0.block.attn1": ("", "q k v out"),
            },
        ),
        (
            "Kandinsky5Transformer3DModel",
            {
                "text_transformer_blocks.0.self_attention": ("q k v out", ""),
                "visual_transformer_blocks.0.cross_attention": ("k v", ""),
            },
        ),
    ],
)
def test_which_tokens_each_projection_receives(name: str, expected: dict[str, tuple[str, str]]) -> None:
    found = tokens(on_meta(name))
    assert {layer: each for layer, each in found.items() if layer in expected} == expected


def test_the_fuser_of_gligen_is_given_no_prompt() -> None:
    small = {"block_out_channels": (32,), "layers_per_block": 1, "cross_attention_dim": 24, "attention_type": "gated"}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    found = attention_of(on_meta("UNet2DConditionModel", **small, **blocks))
    kinds = {"attn1": "self", "attn2": "cross", "fuser.attn": "self"}
    assert {layer.partition("transformer_blocks.0.")[2]: each.kind for layer, each in found.items()} == kinds


def test_keys_and_values_of_cascade_have_the_text_behind_the_image() -> None:
    found = tokens(on_meta("StableCascadeUNet"))
    assert found["down_blocks.0.2.attention"] == ("", "k v")
    assert found["down_blocks.1.2.attention"] == ("k v", "")


def test_added_projections_are_of_the_text_or_of_an_image() -> None:
    simple = {
        "down_block_types": ("SimpleCrossAttnDownBlock2D",),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D",),
    }
    unet = on_meta("UNet2DConditionModel", block_out_channels=(32,), layers_per_block=1, cross_attention_dim=24, **simple)
    found = attention_of(unet)["mid_block.attentions.0"]
    assert found.kind == "joint"
    assert found.why == "the text has projections of its own (add_k_proj)"
    assert tokens(unet)["mid_block.attentions.0"] == ("add_k add_v", "")
    image = attention_of(on_meta("WanTransformer3DModel"))["blocks.0.attn2"]
    assert image.why == "it is cross-attention (is_cross_attention), with add_k_proj for an image"


def test_sequences_come_before_rows_outside_of_the_attention_of_ernie() -> None:
    found = find_projections(on_meta("ErnieImageTransformer2DModel"), ("q",), "all", ["*.up_proj", "text_proj"])
    assert {each.weight: each.tokens_first for each in found} == {
        "text_proj.weight": False,
        "layers.0.self_attention.to_q.weight": False,
        "layers.0.mlp.up_proj.weight": True,
    }


def test_feed_forward_of_a_block_of_text_receives_text() -> None:
    found = find_projections(on_meta("HunyuanVideoTransformer3DModel"), (), "all", ["ff_in"])
    assert {(each.layer, each.from_text, each.from_both) for each in found} == {
        ("context_embedder.token_refiner.refiner_blocks.0", True, False),
        ("transformer_blocks.0", False, False),
        ("single_transformer_blocks.0", False, True),
        ("transformer_blocks.0", True, False),  # ff_context
    }


def _sources() -> dict[str, str]:
    """The source of every class among the models of diffusers, by name."""
    files = [*MODELS.glob("*.py"), *MODELS.glob("*/*.py")]
    parts = [part for file in files for part in re.split(r"(?m)^class ", file.read_text("utf-8"))[1:]]
    return {re.split(r"\W", part, maxsplit=1)[0]: part for part in parts}


def test_the_tables_name_classes_of_diffusers_and_every_processor_that_joins_text_and_image() -> None:
    sources = _sources()
    assert sources.keys() >= _JOINING | _ONE_SEQUENCE | _POOLING
    joined = re.compile(r"torch\.cat\(\[(encoder_hidden_states, hidden_states|hidden_states, encoder_hidden_states)\]")
    joining = {name for name, source in sources.items() if "Processor" in name and joined.search(source)}
    # These stand in layers called attn.
    assert joining - {"HunyuanVideoAttnProcessor2_0", "HunyuanImageAttnProcessor", "MotifVideoAttnProcessor2_0"} == _JOINING
