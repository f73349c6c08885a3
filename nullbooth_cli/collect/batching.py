"""How a batch changes what its prompts have: the lengths of texts, and values that force prompts to run alone.

For most pipelines only the text encoders run here: a call ends before the first forward of the denoiser.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nullbooth_cli.collect.probe import sample_of
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of, denoisers_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks, StopDenoising, argument_names
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.pipeline_call import call_of
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline

SHORT, LONG = "cat", " ".join(["a cat and a dog"] * 8)
DIFFERENT = 0.2  # relative; the round-off of another batch is less than a tenth of it, even in bfloat16


@dataclass(frozen=True)
class Batching:
    """Whether the number of tokens depends on the prompt (`is_ragged`), and whether prompts have to run `alone`.

    Prompts have to run alone where the pipeline class takes one prompt a call, or fails with two (video pipelines that are given
    a picture or a video), and where the values of a prompt depend on the rest of its batch: its padding is attended to and no
    mask shows it (CogView4), or one generator draws for all prompts (the sample of an encoded image).
    """

    is_ragged: bool = False
    alone: bool = False


def find_batching(pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], image: str | None) -> Batching:
    """Compare what a short prompt has alone with what it has behind a long one.

    Cost: the text encoders, twice. Where the two texts give arguments of unequal size or unequal masks, or the pipeline is given
    inputs, also a step of two prompts and one of one.
    """
    long, short = Prompt(LONG, image), Prompt(SHORT, image)
    if call_of(type(pipe)).takes_one_prompt:
        one, other = (_last_prompt(pipe, path, projections, [(0, prompt)]) for prompt in (long, short))
        return Batching(is_ragged=any(one[place][0] != other[place][0] for place in one), alone=True)
    if not path.inputs and _sizes(pipe, path, short) == _sizes(pipe, path, long):
        return Batching()
    alone = _last_prompt(pipe, path, projections, [(1, short)])
    try:
        together = _last_prompt(pipe, path, projections, [(0, long), (1, short)])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # diffusers raises errors of all kinds for inputs, such as a picture, that fit one prompt and not two
        return Batching(is_ragged=_sizes(pipe, path, short) != _sizes(pipe, path, long), alone=True)
    pairs = [(together[place], alone[place]) for place in alone]
    return Batching(
        is_ragged=any(length != other_length for (length, _), (other_length, _) in pairs),
        alone=any(_differ(samples, others) for (_, samples), (_, others) in pairs),
    )


def longest(pipe: Pipeline, path: DenoisingPath, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts with the most tokens: one in every argument of the denoiser, or one for each. Cost: every text is encoded."""
    of_prompts = [_sizes(pipe, path, prompt) for prompt in prompts]
    found = set()
    for name in of_prompts[0]:
        sizes = [of_prompt.get(name, 0) for of_prompt in of_prompts]
        if min(sizes) < max(sizes):
            found.add(sizes.index(max(sizes)))
    return tuple(prompts[i] for i in sorted(found or {0}))


def _last_prompt(
    pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], members: Sequence[tuple[int, Prompt]]
) -> dict[tuple[Forward, Projection], tuple[int, list[torch.Tensor]]]:
    """What each projection receives in the first step: the number of tokens, and of the last prompt a sample for each branch.

    Samples have no padding.
    """
    denoiser, found = denoiser_of(pipe), dict[tuple[Forward, Projection], tuple[int, list[torch.Tensor]]]()
    num_branches, padding = 1, Padding({})

    def begin(_: Forward, arguments: Mapping[str, Any]) -> None:
        nonlocal num_branches, padding
        padding = Padding(arguments)
        num_branches = len(arguments[argument_names(denoiser)[0]]) // len(members)

    def receive(projection: Projection, forward: Forward, tensor: torch.Tensor) -> None:
        attended = padding.attended(projection, tensor)
        if attended is None:
            attended = torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
        values = tensor.reshape(num_branches, len(members), -1, tensor.shape[-1])[:, -1]
        places = attended.reshape(num_branches, len(members), -1)[:, -1]
        samples = [sample_of(tokens[place]).float().cpu() for tokens, place in zip(values, places, strict=True)]
        found[forward, projection] = tensor.shape[1], samples

    def stop() -> None:
        raise StopDenoising

    of_main = tuple(projection for projection in projections if projection.denoiser == "")
    hooks = ProjectionHooks({"": denoiser}, of_main, "input", receive, begin=begin, enter=lambda *given: padding.enter(*given))
    with hooks:
        denoise(pipe, path, members, after_step=stop)
    return found


def _differ(samples: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return any(
        one.shape != other.shape or bool((one - other).norm() > DIFFERENT * other.norm())
        for one, other in zip(samples, others, strict=True)
    )


def _sizes(pipe: Pipeline, path: DenoisingPath, prompt: Prompt) -> dict[str, int]:
    """How large each argument is that a denoiser is first called with, by its place, and how much each mask lets through."""
    found: dict[str, int] = {}

    def take(_: Forward, arguments: Mapping[str, Any]) -> None:
        found.update(_sizes_of("", arguments))
        raise StopDenoising

    with ProjectionHooks(denoisers_of(pipe), (), "input", lambda *_: None, begin=take):
        denoise(pipe, path, [(0, prompt)])
    return found


def _sizes_of(place: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, torch.Tensor):
        yield place, value.numel()
        if not value.is_floating_point():
            yield f"{place} attended", int(value.count_nonzero())
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _sizes_of(f"{place}.{name}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _sizes_of(f"{place}.{i}", inner)
