"""Finds the sites of a model: the projections that share a tensor, and the tensors that do not depend on the timestep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.hooks import ProjectionHooks, SharedInput, equal_in_all, group_shared, memory_of
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.padding import TEXT_ARGUMENT, Padding
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline


@dataclass(frozen=True)
class FoundSites:
    """The sites of a model, and the site of each projection.

    `arguments` are the sites whose tensor is the denoiser's text argument: they need no forward. `tokens_per_prompt` is the
    size of the sample of image tokens, None for all.
    """

    sites: tuple[Site, ...]
    site_of: Mapping[Projection, Site]
    arguments: frozenset[Site]
    tokens_per_prompt: int | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All projections, in firing order of the sites' groups."""
        return tuple(self.site_of)

    @property
    def side(self) -> str:
        """ "input" or "output", the same for all sites."""
        return self.sites[0].side

    def of(self, projections: Sequence[Projection]) -> tuple[Site, ...]:
        """The sites that these projections need."""
        needed = {self.site_of[projection] for projection in projections}
        return tuple(site for site in self.sites if site in needed)


@dataclass(frozen=True)
class RecordableModel:
    """A loaded pipeline, its denoising path, and its sites."""

    pipe: Pipeline
    path: DenoisingPath
    found: FoundSites = field(repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the model's order."""
        return self.found.sites


def find_sites(
    pipe: Pipeline,
    path: DenoisingPath,
    projections: tuple[Projection, ...],
    *,
    side: str,
    branches: str,
    prompt: Prompt,
    tokens_per_prompt: int | None = None,
    num_forwards: int = 2,
    is_timestep_free: Callable[[Sequence[torch.Tensor]], bool] = equal_in_all,
) -> FoundSites:
    """Run the first forwards of one prompt, and compare the tensors of the projections.

    Memory: the tensors of `num_forwards` forwards, which all stay alive. Raises ModelError for hooks that misfire and for an
    unknown batching.
    """
    forwards: list[list[tuple[Projection, torch.Tensor]]] = []
    arguments: list[Mapping[str, Any]] = []

    def receive(projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        if forward == len(forwards):
            forwards.append([])
        forwards[forward].append((projection, tensor))

    with ProjectionHooks(denoiser_of(pipe), projections, side, receive, last=num_forwards - 1, begin=arguments.append):
        denoise(pipe, path, [(0, prompt)])
    _require_one_forward_a_step(path, arguments)
    text, padding = arguments[0].get(TEXT_ARGUMENT), Padding(arguments[0])
    site_of: dict[Projection, Site] = {}
    are_arguments = set()
    for shared in group_shared(forwards, is_timestep_free):
        padding.attended(shared.projections[0], shared.example)  # raises if it cannot be known
        site = _site_of(shared, side, branches, tokens_per_prompt, padding.is_masked)
        site_of.update(dict.fromkeys(shared.projections, site))
        if side == "input" and text is not None and shared.timestep_free and memory_of(shared.example) == memory_of(text):
            are_arguments.add(site)
    order = {projection: i for i, projection in enumerate(projections)}
    sites = dict.fromkeys(site_of[projection] for projection in sorted(site_of, key=order.__getitem__))
    return FoundSites(tuple(sites), site_of, frozenset(are_arguments), tokens_per_prompt)


def _require_one_forward_a_step(path: DenoisingPath, arguments: Sequence[Mapping[str, Any]]) -> None:
    """Raise ModelError if the first two forwards had one timestep: guidance as a second forward is recorded as a step."""
    seen = [given["timestep"] for given in arguments if isinstance(given.get("timestep"), torch.Tensor)]
    differ = len(path.steps) > 1 and path.steps[0].timestep != path.steps[1].timestep
    if len(seen) > 1 and differ and torch.equal(seen[0], seen[1]):
        raise ModelError(
            "the pipeline runs two forwards at each step, one of them for guidance, and nullbooth records one",
            "set collect.guidance_scale to 1, which records the prompts alone",
        )


def _site_of(shared: SharedInput, side: str, branches: str, tokens_per_prompt: int | None, masked: bool) -> Site:
    first = shared.projections[0]
    _, num_tokens, dim = split_branches(shared.example, 1, branches).shape
    if tokens_per_prompt is not None and not first.from_text:
        num_tokens = min(num_tokens, tokens_per_prompt)
    return Site(
        layer=first.layer,
        feature=first.feature,
        side=side,
        weights=tuple(projection.weight for projection in shared.projections),
        timestep_free=shared.timestep_free,
        num_tokens=num_tokens,
        dim=dim,
        masked=masked and (first.from_text or first.from_both),
    )


def split_branches(tensor: torch.Tensor, num_prompts: int, branches: str) -> torch.Tensor:
    """`[rows, L, D]` to one entry a prompt: `[B, 2 L, D]`, the empty prompt's tokens before the prompt's own, or `[B, L, D]`.

    Guided models stack [unconditional; conditional] rows; models without that doubling have one row a prompt. With `branches`
    "cond" only the prompt's own tokens are returned. Raises ModelError for another number of rows.
    """
    rows = tensor.shape[0]
    if rows == num_prompts:
        return tensor
    if rows != 2 * num_prompts:
        raise ModelError(
            f"a projection received {rows} rows for {num_prompts} prompts; nullbooth records one or two rows a prompt",
            "choose another pipeline: this one's batching cannot be recorded",
        )
    empty, own = tensor[:num_prompts], tensor[num_prompts:]
    return own if branches == "cond" else torch.cat([empty, own], dim=1)
