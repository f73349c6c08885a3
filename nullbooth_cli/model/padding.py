"""Which tokens of a projection's tensor are padding, by the masks that a pipeline gives its denoiser, whatever their names.

Pipelines mask text of unequal length: `encoder_attention_mask` in PixArt, `encoder_hidden_states_mask` in Qwen-Image,
`attention_mask` over text and image together in Chroma. A mask belongs to a tensor if it has one entry for each of its tokens.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.projections import Projection

TEXT_ARGUMENT = "encoder_hidden_states"  # diffusers' name of a denoiser's text `[rows, L, D]`
_IMAGE_ARGUMENT = "hidden_states"
_TEXT_MASK = re.compile(r"(\w+_)?attention_mask(_\w+)?|\w*(encoder|text|prompt)\w*_mask(_\w+)?")


class Padding:
    """The padding of one forward, from the keyword arguments of the denoiser.

    `is_masked`: whether the pipeline passes masks of its text at all; it may pass None for a batch without padding.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        masks = dict(_text_masks(arguments))
        self.is_masked = bool(masks)
        self._shapes = {name: list(mask.shape) for name, mask in masks.items() if mask is not None}
        self._masks = {name: mask > 0 for name, mask in masks.items() if mask is not None and mask.dim() == 2}
        image = arguments.get(_IMAGE_ARGUMENT)
        self._num_image = image.shape[1] if isinstance(image, torch.Tensor) and image.dim() == 3 else None

    def attended(self, projection: Projection, tensor: torch.Tensor) -> torch.Tensor | None:
        """`[rows, L]` bool, False for padding, of a projection's tensor `[rows, L, D]`; None if nothing in it is padding.

        Raises ModelError if the masks do not show which of its tokens are padding.
        """
        if not self._shapes or not (projection.from_text or projection.from_both):
            return None
        rows, num_tokens = tensor.shape[:2]
        if projection.from_both and num_tokens in (1, self._num_image):
            return None  # one vector for the whole image, or a block of the image alone
        for mask in self._masks.values():
            if mask.shape == (rows, num_tokens):
                return mask
            # Text before image; the other order would leave padding where the image is.
            of_both = projection.from_text and mask.shape == (rows, num_tokens + (self._num_image or 0))
            if of_both and mask[:, num_tokens:].all():
                return mask[:, :num_tokens]
        shapes = ", ".join(f"{name} {shape}" for name, shape in self._shapes.items())
        raise ModelError(
            f"{projection} receives {num_tokens} tokens in {rows} rows, and the masks of this pipeline do not show which are "
            f"padding: {shapes}",
            "leave it out of collect.cross_attention_layers and collect.linear_layers, or choose another model: padding must not "
            "count as preserved",
        )


def _text_masks(arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor | None]]:
    """The masks of text among the arguments of a denoiser, and in those of its attention layers."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _text_masks(value)
        elif _TEXT_MASK.fullmatch(name) and (value is None or isinstance(value, torch.Tensor)):
            yield name, value
