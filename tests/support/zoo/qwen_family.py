"""Tiny random pipelines of Qwen-Image, in the classes that draw from a picture as well."""

from typing import Any

import diffusers

from tests.support.tiny import TEXT, qwen_image


def qwen_as(name: str, **parts: Any) -> Any:
    return getattr(diffusers, name)(**{**qwen_image().components, **parts})


def qwen_controlnet(name: str, extra_channels: int = 0) -> Any:
    net = diffusers.QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
        extra_condition_channels=extra_channels,
    )
    return qwen_as(name, controlnet=net)
