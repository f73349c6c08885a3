"""Tiny random pipelines of Qwen-Image, in the classes that draw from a picture as well."""

from typing import Any

import diffusers

from tests.support.tiny import QWEN_SHAPE, qwen_image, with_class


def qwen_as(name: str, **parts: Any) -> Any:
    return with_class(name, qwen_image(), **parts)


def qwen_controlnet(name: str, extra_channels: int = 0) -> Any:
    net = diffusers.QwenImageControlNetModel(extra_condition_channels=extra_channels, **QWEN_SHAPE)
    return qwen_as(name, controlnet=net)
