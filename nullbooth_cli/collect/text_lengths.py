"""Texts of unequal length: whether a pipeline's texts are only as long as their prompts, and which prompts are the longest.

Only the text encoders run for that: a call of the pipeline ends before the first forward of its denoiser.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from nullbooth_cli.collect.probe import Probe
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks, StopDenoising
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline

_ATTENDED = " > 0"  # after the name of a mask
SHORT, LONG = "cat", " ".join(["a cat and a dog"] * 8)


def has_ragged_text(pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], image: str | None) -> bool:
    """Whether a longer prompt gives the denoiser longer arguments, or makes it cut its text by a mask, as Lumina 2 does.

    Cost: the text encoders, twice; if masks alone differ, also a step of two prompts.
    """
    prompts = [Prompt(text, image) for text in (SHORT, LONG)]
    short, long = (_sizes(pipe, path, prompt) for prompt in prompts)
    if short == long:
        return False
    if any(size != long.get(name) for name, size in short.items() if not name.endswith(_ATTENDED)):
        return True
    shapes = [
        [
            tensor.shape
            for received in _probed(pipe, path, projections, [prompt]).received.values()
            for tensor in received.values()
        ]
        for prompt in prompts
    ]
    return shapes[0] != shapes[1]


def longest(pipe: Pipeline, path: DenoisingPath, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The longest of prompts: one that is so in every argument of the denoiser, or one for each. Cost: every text is encoded."""
    of_prompts = [_sizes(pipe, path, prompt) for prompt in prompts]
    found = set()
    for name in of_prompts[0]:
        sizes = [of_prompt.get(name, 0) for of_prompt in of_prompts]
        if min(sizes) < max(sizes):
            found.add(sizes.index(max(sizes)))
    return tuple(prompts[i] for i in sorted(found or {0}))


def need_to_run_alone(pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], image: str | None) -> bool:
    """Whether a prompt has more tokens beside a longer one: its padding then counts, and no mask shows it.

    Cost: a step of two prompts, and one of one.
    """
    prompts = [Prompt(SHORT, image), Prompt(LONG, image)]
    counts = [_num_attended(pipe, path, projections, prompts[:number]) for number in (2, 1)]
    return counts[0] != counts[1]


def _num_attended(
    pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], prompts: Sequence[Prompt]
) -> Mapping[tuple[Forward, Projection], list[int]]:
    """The tokens of the first prompt that are no padding, in the first step, by branch."""
    probe, found = _probed(pipe, path, projections, prompts), {}
    for forward, received in probe.received.items():
        chunks = probe.num_rows[forward] // len(prompts)
        for projection, tensor in received.items():
            rows, length, _ = tensor.shape
            attended = torch.ones(rows, length, dtype=torch.bool) if tensor.attended is None else tensor.attended
            of_prompts = attended.reshape(chunks, len(prompts), -1)
            found[forward, projection] = of_prompts[:, 0].sum(1).tolist()
    return found


def _probed(pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], prompts: Sequence[Prompt]) -> Probe:
    """The first step of prompts, in the main denoiser."""
    of_main = tuple(projection for projection in projections if projection.denoiser == "")
    probe = Probe(pipe, of_main, "input", num_steps=1, only_main=True)
    probe.run(path, *prompts)
    return probe


def _sizes(pipe: Pipeline, path: DenoisingPath, prompt: Prompt) -> dict[str, int]:
    """The number of values of each tensor that a denoiser is first called with, by its place among the arguments.

    Of a mask also how many of them are attended to.
    """
    found: dict[str, int] = {}

    def take(_: Forward, arguments: Mapping[str, Any]) -> None:
        found.update(_tensors("", arguments))
        raise StopDenoising

    with ProjectionHooks(denoisers_of(pipe), (), "input", lambda *_: None, begin=take):
        denoise(pipe, path, [(0, prompt)])
    return found


def _tensors(place: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, torch.Tensor):
        yield place, value.numel()
        if place.endswith("mask") and value.dim() == 2:
            yield place + _ATTENDED, int((value > 0).sum())
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tensors(f"{place}.{name}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _tensors(f"{place}.{i}", inner)
