"""Finds out once what a model gives its projections: which share a tensor, which ignore the timestep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.hooks import ProjectionHooks, SharedInput, equal_in_all, group_shared, memory_of
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.projections import Projection

TEXT_ARGUMENT = "encoder_hidden_states"
MASK_ARGUMENT = "encoder_attention_mask"


@dataclass(frozen=True)
class FoundSites:
    """What a probe of the model found: the recordings to make, the recording of each projection, and those that the denoiser
    is given as an argument."""

    sites: tuple[Site, ...]
    owners: dict[Projection, Site]
    given: frozenset[Site]


def find_sites(
    pipe: Any,
    path: DenoisingPath,
    projections: tuple[Projection, ...],
    side: str,
    branches: str,
    prompt: Prompt,
    tokens_per_prompt: int | None = None,
    num_forwards: int = 2,
    is_timestep_free: Callable[[Sequence[torch.Tensor]], bool] = equal_in_all,
) -> FoundSites:
    """Run the first steps of one prompt and look which tensor each projection gets."""
    forwards: list[list[tuple[Projection, torch.Tensor]]] = []
    given: list[Mapping[str, Any]] = []

    def receive(projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        if forward == len(forwards):
            forwards.append([])
        forwards[forward].append((projection, tensor))

    with ProjectionHooks(denoiser_of(pipe), projections, side, receive, last=num_forwards - 1, begin=given.append):
        denoise(pipe, path, [(0, prompt)])
    text, masked = given[0].get(TEXT_ARGUMENT), given[0].get(MASK_ARGUMENT) is not None
    owners, arguments = {}, set()
    for shared in group_shared(forwards, is_timestep_free):
        site = _site_of(shared, side, branches, tokens_per_prompt, masked)
        owners.update(dict.fromkeys(shared.projections, site))
        if side == "input" and text is not None and shared.timestep_free and memory_of(shared.example) == memory_of(text):
            arguments.add(site)
    order = {projection: i for i, projection in enumerate(projections)}
    return FoundSites(
        tuple(dict.fromkeys(owners[p] for p in sorted(owners, key=order.__getitem__))), owners, frozenset(arguments)
    )


def _site_of(shared: SharedInput, side: str, branches: str, tokens_per_prompt: int | None, masked: bool) -> Site:
    first = shared.projections[0]
    _, num_tokens, dim = split_branches(shared.example, 1, branches).shape
    if tokens_per_prompt is not None and not first.from_text:
        num_tokens = min(num_tokens, tokens_per_prompt)
    return Site(
        first.layer,
        first.feature,
        side,
        tuple(p.weight for p in shared.projections),
        shared.timestep_free,
        num_tokens,
        dim,
        masked and first.from_text,
    )


def split_branches(tensor: torch.Tensor, num_prompts: int, branches: str) -> torch.Tensor:
    """`[rows, L, D]` to one entry a prompt: `[B, 2 L, D]`, the empty prompt's tokens before the prompt's own, or `[B, L, D]`.

    Guided models stack [unconditional; conditional] rows; models without that doubling have one row a prompt.
    """
    rows = tensor.shape[0]
    if rows == num_prompts:
        return tensor
    if rows != 2 * num_prompts:
        raise ConfigError(
            f"a projection saw {rows} rows for {num_prompts} prompts", "this pipeline's batching is not known to nullbooth"
        )
    empty, own = tensor[:num_prompts], tensor[num_prompts:]
    return own if branches == "cond" else torch.cat([empty, own], dim=1)
