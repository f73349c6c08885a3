"""Branches: the rows that a denoiser gets for each prompt in a step, stacked in one forward or in several.

Guidance adds rows for the empty prompt, perturbed attention a third one. Which rows depend on the prompt is found by looking: two
prompts are run from the same noise, and what differs in the first step depends on the prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from nullbooth_cli.collect.probe import Probe, Received
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.model.protocols import Pipeline

PROMPT, EMPTY = "prompt", "empty"
TEXTS = ("cat dog", "dog cat")  # as many tokens in another order


@dataclass(frozen=True)
class Branch:
    """The `chunk`-th of the `num_chunks` rows that each prompt has in the `turn`-th forward of a step.

    `name` is prompt for a row that depends on the prompt and empty for others, numbered from the second of a kind on.
    """

    name: str
    turn: int
    chunk: int
    num_chunks: int


Branches = tuple[Branch, ...]  # of a step, in the order in which they run
ALONE: Branches = (Branch(PROMPT, 0, 0, 1),)


def find_branches(
    pipe: Pipeline, path: DenoisingPath, projections: tuple[Projection, ...], side: str, seen: Probe, image: str | None
) -> Branches:
    """All branches of a pipeline, whose first steps were `seen`. Cost: one step of two more prompts, unless there is one branch.

    Raises ModelError if they differ between steps or denoisers, and if none depends on the prompt.
    """
    rows = _rows(seen)
    if rows == [1]:
        return ALONE
    probes = []
    main = tuple(projection for projection in projections if projection.denoiser == "")
    main = main or find_projections(denoiser_of(pipe), ("k",), "all")  # where only a second denoiser is recorded
    for text in TEXTS:
        probe = Probe(pipe, main, side, num_steps=1, only_main=True)
        probe.run(path, Prompt(text, image))
        probes.append(probe)
    return named(rows, _depend_on_prompt(*probes))


def named(rows: Sequence[int], own: Sequence[bool]) -> Branches:
    """The branches of a step whose forwards have `rows` rows each; `own` says of every row whether it depends on the prompt."""
    places = [(turn, chunk, num_chunks) for turn, num_chunks in enumerate(rows) for chunk in range(num_chunks)]
    found: list[Branch] = []
    for place, is_own in zip(places, own, strict=True):
        kind = PROMPT if is_own else EMPTY
        before = sum(branch.name.startswith(kind) for branch in found)
        found.append(Branch(kind if not before else f"{kind}_{before + 1}", *place))
    return tuple(found)


def _rows(seen: Probe) -> list[int]:
    """The rows of a prompt in each forward of a step, the same in every step and denoiser that was seen."""
    steps: dict[tuple[str, int], list[int]] = {}
    for forward, num_rows in seen.num_rows.items():
        steps.setdefault((forward.denoiser, forward.step), []).append(num_rows)
    first, *others = steps.values()
    if any(other != first for other in others):
        raise ModelError(
            f"the rows of a prompt change from step to step: {first} first, then {next(o for o in others if o != first)}",
            "set collect.guidance_scale to 1, so that guidance neither starts nor ends on the way",
        )
    return first


def _depend_on_prompt(one: Probe, other: Probe) -> list[bool]:
    """Of every row of the first step, in order, whether anything in it differs between two prompts."""
    found: list[bool] = []
    for forward, num_rows in one.num_rows.items():
        pairs = [(received, other.received[forward][each]) for each, received in one.received[forward].items()]
        found += [any(_differ(*pair, chunk, num_rows) for pair in pairs) for chunk in range(num_rows)]
    if not any(found):
        raise ModelError(
            "no row of this pipeline depends on the prompt in its first step",
            "check that the pipeline is a text-to-image one, and that collect.pipeline_inputs do not replace its prompt",
        )
    return found


def _differ(one: Received, other: Received, chunk: int, num_chunks: int) -> bool:
    return one.shape != other.shape or not torch.equal(one.sample.chunk(num_chunks)[chunk], other.sample.chunk(num_chunks)[chunk])


def split_branches(tensor: torch.Tensor, num_prompts: int, recorded: Sequence[Branch]) -> list[torch.Tensor]:
    """`[rows, L, D]` of one forward to `[B, F L, D]` of each recorded branch; F are the rows of a prompt in it, such as frames.

    Rows come by branch, then by prompt, then by frame. Raises ModelError for a number of rows that this does not divide.
    """
    rows, dim = tensor.shape[0], tensor.shape[-1]
    of_all = recorded[0].num_chunks * num_prompts
    if rows % of_all:
        raise ModelError(
            f"a projection received {rows} rows for {num_prompts} prompts of {recorded[0].num_chunks} branches",
            "choose another pipeline: this one's batching cannot be recorded",
        )
    chunks = tensor.reshape(recorded[0].num_chunks, num_prompts, -1, dim)
    return [chunks[branch.chunk] for branch in recorded]


def recorded_of(branches: Branches, chosen: str) -> Branches:
    """The branches that are recorded: all for "both", those of the prompt for "cond"."""
    return branches if chosen == "both" else tuple(branch for branch in branches if branch.name.startswith(PROMPT))


def by_turn(branches: Branches) -> Mapping[int, Branches]:
    """The branches of each forward of a step."""
    return {turn: tuple(each for each in branches if each.turn == turn) for turn in dict.fromkeys(b.turn for b in branches)}
