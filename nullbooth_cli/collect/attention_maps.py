"""Attention maps: the places that each word of a prompt attends to, for a few prompts, layers and timesteps.

The chosen prompts are run once more beside the collection, from the same noise and to the end (collect.visual_attention_map).
In the chosen layers and steps, hooks take the outputs of to_q and to_k, and diffusers' own function makes the scores. The model
itself still uses its fast attention. Cost: one more run of the chosen prompts, and the autoencoder once each.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.attention_layers import CROSS, JOINT, SELF, TEXT
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks
from nullbooth_cli.model.load import tokenizers_of
from nullbooth_cli.model.projections import Projection, attention_of, find_projections
from nullbooth_cli.model.prompt_length import token_limits
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.store import AttentionMaps

# Processors whose scores are the softmax of q k^T, as diffusers' own function makes them.
_PLAIN = {"AttnProcessor", "AttnProcessor2_0", "SanaAttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}
_NO_MAP = {
    CROSS: None,
    JOINT: "attends to image and text at once",
    TEXT: "attends from the text to itself",
    SELF: "attends to no text",
}


def find_attention(denoiser: nn.Module, layers: str | list[str | int]) -> tuple[Projection, ...]:
    """to_q and to_k of the chosen layers.

    Raises ConfigError for layers in which the image does not attend to words alone, and for those whose scores are not the plain
    ones of q and k.
    """
    projections = find_projections(denoiser, ("q", "k"), layers)
    decided = attention_of(denoiser)
    for layer in dict.fromkeys(projection.layer for projection in projections):
        processor = type(getattr(denoiser.get_submodule(layer), "processor", None)).__name__
        reason = _NO_MAP[decided[layer].kind]
        if reason is None and processor not in _PLAIN:
            reason = f"scores in its own way ({processor})"
        if reason is not None:
            raise ConfigError(
                f"{layer} {reason}: it has no map of words alone",
                "set collect.visual_attention_map to false, or collect.attention_layers to layers of cross-attention",
            )
    return projections


def record(
    pipe: Pipeline,
    path: DenoisingPath,
    row: int,
    prompt: Prompt,
    *,
    projections: tuple[Projection, ...],
    steps: Sequence[int],
) -> AttentionMaps:
    """Run one prompt from the noise of its row, and record its attention at these steps.

    `projections` are to_q and to_k of the layers, as `find_attention` finds them.
    """
    denoiser = denoiser_of(pipe)
    words = words_of(pipe, prompt)
    queries: dict[str, torch.Tensor] = {}
    found: dict[str, list[torch.Tensor]] = {projection.layer: [] for projection in projections}
    masks: dict[str, torch.Tensor | None] = {}

    def receive(projection: Projection, forward: Forward, tensor: torch.Tensor) -> None:
        if forward.turn:
            raise ModelError(
                f"{type(pipe).__name__} runs its denoiser several times in a step, and attention maps take one run",
                "set collect.visual_attention_map to false",
            )
        if forward.step not in steps:
            return
        layer = projection.layer
        if projection.feature == "q":
            queries[layer] = tensor
        else:
            scores = _scores(denoiser.get_submodule(layer), queries.pop(layer), tensor, masks[layer])
            found[layer].append(scores[:, : len(words)])

    def note_mask(layer: str, _: object, __: object, arguments: dict[str, Any]) -> None:
        masks[layer] = arguments.get("attention_mask")

    handles = [
        denoiser.get_submodule(layer).register_forward_pre_hook(partial(note_mask, layer), with_kwargs=True) for layer in found
    ]
    try:
        with ProjectionHooks({"": denoiser}, projections, "output", receive) as hooks:
            image = denoise(pipe, path, [(row, prompt)], output_type="np", after_step=hooks.end_step)[0]
            if image.ndim != 3:
                raise ModelError(
                    f"{type(pipe).__name__} draws frames, and attention maps are of one image",
                    "set collect.visual_attention_map to false",
                )
    finally:
        for handle in handles:
            handle.remove()
    layers = {layer: _as_maps(torch.stack(scores), image.shape[0] / image.shape[1], layer) for layer, scores in found.items()}
    return AttentionMaps(words, tuple(steps), layers, (image.clip(0, 1) * 255).round().astype(np.uint8))


def _scores(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax of q k^T, mean over heads, `[Q, K]`, of the prompt's own row: the last, after the empty prompt's."""
    query, key = (attention.head_to_batch_dim(tensor[-1:]) for tensor in (query, key))
    if attention.norm_q is not None:
        query = attention.norm_q(query)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    if mask is not None:
        mask = attention.prepare_attention_mask(mask[-1:], key.shape[1], 1)
    scores: torch.Tensor = attention.get_attention_scores(query, key, mask)
    return scores.mean(dim=0).half().cpu()


def _as_maps(scores: torch.Tensor, aspect: float, layer: str) -> NDArray[np.float16]:
    """`[S, Q, K]` to `[S, H, W, K]`, for images of height / width `aspect`."""
    num_queries = scores.shape[1]
    height = round((num_queries * aspect) ** 0.5)
    if height == 0 or num_queries % height:
        raise ConfigError(
            f"{layer} attends from {num_queries} places, which do not fill an image of aspect {aspect:.3g}",
            "leave the layer out of collect.attention_layers, or set collect.visual_attention_map to false",
        )
    return scores.reshape(len(scores), height, num_queries // height, -1).numpy()


def words_of(pipe: Pipeline, prompt: Prompt) -> tuple[str, ...]:
    """The tokens of a prompt, begin and end mark included, cut to those that the pipeline takes."""
    tokenizer = tokenizers_of(pipe)["tokenizer"]
    ids = tokenizer(prompt.text, truncation=True, max_length=token_limits(pipe)["tokenizer"]).input_ids
    return tuple(str(token).removesuffix("</w>").lstrip("\u2581") or "_" for token in tokenizer.convert_ids_to_tokens(ids))
