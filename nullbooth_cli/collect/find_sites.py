"""Finds the sites of a model: the projections that share a tensor, and the tensors that do not depend on the timestep.

Where texts are as long as their prompts, a site has as many tokens as the longest prompt gives it, and padding.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from nullbooth_cli.collect.batching import find_batching, longest
from nullbooth_cli.collect.branches import Branches, find_branches, recorded_of
from nullbooth_cli.collect.probe import Probe, Received
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.hooks import Forward
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline


@dataclass(frozen=True, kw_only=True)
class FoundSites:
    """The sites of a model, and the site of each projection.

    `arguments` are the sites whose tensor is the denoiser's text argument: they need no forward. `branches` are those that are
    recorded. `tokens_per_prompt` is the size of the sample of image tokens, None for all. `alone`: prompts have to run one by
    one (`find_batching`).
    """

    sites: tuple[Site, ...]
    site_of: Mapping[Projection, Site]
    arguments: frozenset[Site]
    branches: Branches
    tokens_per_prompt: int | None = None
    num_turns: int = 1  # forwards of a denoiser in a step
    alone: bool = False

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

    def with_sites(self, stored: Sequence[Site]) -> "FoundSites":
        """The same with the sites of a store by the same names, which may have other numbers of tokens."""
        by_name = {site.name: site for site in stored}
        return replace(
            self,
            sites=tuple(by_name[site.name] for site in self.sites),
            site_of={projection: by_name[site.name] for projection, site in self.site_of.items()},
            arguments=frozenset(by_name[site.name] for site in self.arguments),
        )

    def last_forward(self, num_steps: int) -> Forward | None:
        """The forward after which nothing is left to record, on a path of `num_steps` steps; None if no forward is needed."""
        if self.arguments == set(self.sites):
            return None
        ends = [(site.recorded_steps(num_steps)[-1], each.denoiser) for each, site in self.site_of.items()]
        step, prefix = max(ends)
        return Forward(prefix, step, self.branches[-1].turn)

    def forwards_needed(self, num_steps: int) -> int:
        """The number of forwards of a unit, on a path of `num_steps` steps: 0 if every site is an argument of the denoiser."""
        last = self.last_forward(num_steps)
        return 0 if last is None else last.step * self.num_turns + last.turn + 1


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
    prompts: Sequence[Prompt],
    tokens_per_prompt: int | None = None,
) -> FoundSites:
    """Run the first steps of the longest of these prompts, and compare the tensors of the projections.

    `branches` is "both" or "cond". Cost: two steps of each denoiser (up to the first ones of a second denoiser), and those of
    `find_branches` and `find_batching`; where the number of tokens depends on the prompt, every text is encoded.
    Raises ModelError for hooks that misfire and for forwards that cannot be told apart.
    """
    image, num_steps = prompts[0].image, len(path.steps) or path.num_inference_steps
    batching = find_batching(pipe, path, projections, image)
    first, *others = longest(pipe, path, prompts) if batching.is_ragged and len(prompts) > 1 else prompts[:1]

    def probe(prompt: Prompt) -> Probe:
        seen = Probe(pipe, projections, side, num_steps=2)
        seen.run(path, prompt)
        return seen

    seen = probe(first)
    recorded = recorded_of(find_branches(pipe, path, projections, side, seen, image), branches)
    found = sites_of(seen, projections, side, recorded, num_steps, tokens_per_prompt)
    found = replace(found, alone=batching.alone)
    if not batching.is_ragged:
        return found
    of_others = [sites_of(probe(prompt), projections, side, recorded, num_steps, tokens_per_prompt) for prompt in others]
    may_be_padded = {site for each, site in found.site_of.items() if each.from_text or each.from_both}
    sites = [
        replace(site, num_tokens=max(each.sites[i].num_tokens for each in (found, *of_others)), masked=site in may_be_padded)
        for i, site in enumerate(found.sites)
    ]
    return found.with_sites(sites)


def sites_of(
    seen: Probe,
    projections: tuple[Projection, ...],
    side: str,
    branches: Branches,
    num_steps: int,
    tokens_per_prompt: int | None,
) -> FoundSites:
    """The sites that a probe saw, of these recorded branches."""
    received: dict[Projection, dict[Forward, Received]] = {}
    for forward, tensors in seen.received.items():
        for projection, tensor in tensors.items():
            received.setdefault(projection, {})[forward] = tensor
    groups: dict[tuple[object, ...], list[Projection]] = {}
    for projection, tensors_of in received.items():
        groups.setdefault((projection.denoiser, *(each.memory for each in tensors_of.values())), []).append(projection)
    steps = _steps_of(seen, {projection.denoiser for projection in projections}, num_steps)
    site_of: dict[Projection, Site] = {}
    are_arguments = set()
    for members in groups.values():
        tensors_of = received[members[0]]
        site = _site(members, tensors_of, seen, side, branches, steps[members[0].denoiser])
        if tokens_per_prompt is not None and not members[0].from_text:
            site = replace(site, num_tokens=min(site.num_tokens, tokens_per_prompt))
        site_of.update(dict.fromkeys(members, site))
        if side == "input" and branches[-1].turn == 0 and site.timestep_free and all(t.is_argument for t in tensors_of.values()):
            are_arguments.add(site)
    order = {projection: i for i, projection in enumerate(projections)}
    sites = dict.fromkeys(site_of[projection] for projection in sorted(site_of, key=order.__getitem__))
    return FoundSites(
        sites=tuple(sites),
        site_of=site_of,
        arguments=frozenset(are_arguments),
        branches=branches,
        tokens_per_prompt=tokens_per_prompt,
        num_turns=len({forward.turn for forward in seen.received}),
    )


def _site(
    members: Sequence[Projection],
    tensors: Mapping[Forward, Received],
    seen: Probe,
    side: str,
    branches: Branches,
    steps: tuple[int, int] | None,
) -> Site:
    first = next(iter(tensors))
    num_tokens = 0
    for branch in branches:
        forward = first._replace(turn=branch.turn)
        rows, length, _ = tensors[forward].shape
        num_tokens += rows // seen.num_rows[forward] * length
    return Site(
        layer=members[0].layer,
        feature=members[0].feature,
        side=side,
        weights=tuple(projection.weight for projection in members),
        timestep_free=_is_timestep_free(tensors),
        num_tokens=num_tokens,
        dim=tensors[first].shape[-1],
        masked=any(tensor.attended is not None for tensor in tensors.values()),
        steps=steps,
    )


def _is_timestep_free(tensors: Mapping[Forward, Received]) -> bool:
    """Whether a projection received equal values in every step. One step alone cannot show it: False."""
    if all(tensor.changes is not None for tensor in tensors.values()):
        return not any(tensor.changes for tensor in tensors.values())
    first = next(iter(tensors)).step
    return len({forward.step for forward in tensors}) > 1 and all(
        torch.equal(tensors[forward._replace(step=first)].sample, tensor.sample) for forward, tensor in tensors.items()
    )


def _steps_of(seen: Probe, prefixes: Collection[str], num_steps: int) -> dict[str, tuple[int, int] | None]:
    """The steps (the first, how many) in which each denoiser runs; None for one that runs in all. One follows the other."""
    starts = {prefix: seen.first_step(prefix) for prefix in prefixes}
    if len(seen.denoisers) == 1:
        return dict.fromkeys(starts)
    ends = [*sorted(seen.first_step(prefix) for prefix in seen.denoisers), num_steps]
    return {prefix: (start, ends[ends.index(start) + 1] - start) for prefix, start in starts.items()}
