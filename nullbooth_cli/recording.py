"""What a model's projections receive: found out once, then recorded unit by unit, and checked. No files.

1. `find_sites()` runs one prompt for two steps and looks which projections share a tensor, which tensors ignore the timestep, and
   which are an argument of the denoiser.
2. `Recorder` takes the tensors of one unit as hooks see them, and hands each recording to the sinks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nullbooth_cli.denoise import DenoisingPath, denoise
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import denoiser_of
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.sampling import sample_tokens
from nullbooth_cli.sites import Projection, Shared, Watch, equal_in_all, group_shared, memory_of
from nullbooth_cli.store import Site

TEXT_ARGUMENT = "encoder_hidden_states"
MASK_ARGUMENT = "encoder_attention_mask"


@dataclass(frozen=True)
class Found:
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
) -> Found:
    """Run the first steps of one prompt and look which tensor each projection gets."""
    forwards: list[list[tuple[Projection, torch.Tensor]]] = []
    given: list[Mapping[str, Any]] = []

    def receive(projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        if forward == len(forwards):
            forwards.append([])
        forwards[forward].append((projection, tensor))

    with Watch(denoiser_of(pipe), projections, side, receive, last=num_forwards - 1, begin=given.append):
        denoise(pipe, path, [(0, prompt)])
    text, masked = given[0].get(TEXT_ARGUMENT), given[0].get(MASK_ARGUMENT) is not None
    owners, arguments = {}, set()
    for shared in group_shared(forwards, is_timestep_free):
        site = _site_of(shared, side, branches, tokens_per_prompt, masked)
        owners.update(dict.fromkeys(shared.projections, site))
        if side == "input" and text is not None and shared.timestep_free and memory_of(shared.example) == memory_of(text):
            arguments.add(site)
    order = {projection: i for i, projection in enumerate(projections)}
    return Found(tuple(dict.fromkeys(owners[p] for p in sorted(owners, key=order.__getitem__))), owners, frozenset(arguments))


def _site_of(shared: Shared, side: str, branches: str, tokens_per_prompt: int | None, masked: bool) -> Site:
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


class Sink(Protocol):
    """Where the recorded tensors of a unit go."""

    dtype: str | None  # what values must fit, or None for what the model gives

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        """Take `[B, L, D]`, on the model's device; keep a copy of what is kept."""

    def due(self) -> bool:
        """Whether finished units should be made durable now."""

    def checkpoint(self, units: Sequence[int]) -> None:
        """Write all that was received, which includes these units whole."""


class Recorder:
    """Checks the tensors of one unit as they are seen, and hands each recording to the sinks.

    On CUDA nothing here waits for the device: what must hold is noted there, and `check` reads it after the unit.
    """

    def __init__(
        self, path: DenoisingPath, members: list[tuple[int, Prompt]], found: Found, branches: str, sinks: Sequence[Sink]
    ) -> None:
        self.members, self.num_forwards = members, 0
        self._path, self._owners, self._branches, self._sinks = path, found.owners, branches, sinks
        self._rows = [row for row, _ in members]
        self._current: dict[Site, torch.Tensor] = {}
        self._constant: dict[Site, tuple[torch.Tensor, int]] = {}
        self._changed: list[tuple[Projection, torch.Tensor]] = []
        self._largest: list[tuple[Site, int, torch.Tensor]] = []
        self._padding: torch.Tensor | None = None

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Note what a forward of the denoiser is given: which tokens of the text are padding that nothing looks at."""
        mask = arguments.get(MASK_ARGUMENT)
        if mask is not None:
            self._padding = split_branches(mask[..., None], len(self.members), self._branches) <= 0

    def receive(self, projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        site = self._owners[projection]
        if forward == self.num_forwards:
            self._current.clear()
            self.num_forwards += 1
        if site in self._current:
            if self._current[site].data_ptr() != tensor.data_ptr():
                raise ConfigError(
                    f"{projection} no longer shares its tensor with {site.name}", "this model's sharing changes on the way"
                )
            return
        if len(site.weights) > 1:
            self._current[site] = tensor
        if site.timestep_free and forward > 0:
            first, version = self._constant[site]
            if first.data_ptr() != tensor.data_ptr() or first._version != version:
                self._changed.append((projection, (first != tensor).any()))
            return
        if site.timestep_free:
            self._constant[site] = (tensor, tensor._version)
        values = split_branches(tensor, len(self.members), self._branches)
        seen = values = sample_tokens(values, site.num_tokens, self._path.seed, self._rows, forward, site.name)
        if site.masked:
            assert self._padding is not None
            seen, values = (values.masked_fill(self._padding, filling) for filling in (0.0, torch.nan))
        # The largest magnitude of each prompt tells it all: NaN outlives amax, and rounding to a dtype keeps the order.
        self._largest.append((site, forward, seen.abs().flatten(1).amax(1).float()))
        for sink in self._sinks:
            sink.receive(site, forward, self._rows, values)

    def check(self) -> None:
        """Raise ConfigError for what was seen to be wrong in the unit. Waits for the device once."""
        if self._changed and torch.stack([changed for _, changed in self._changed]).any():
            wrong = next(projection for projection, changed in self._changed if changed)
            raise ConfigError(f"{wrong} changes with the timestep after all", "this model's sharing changes on the way")
        largest = torch.stack([of_prompts for *_, of_prompts in self._largest]).cpu()
        dtypes = list(dict.fromkeys([None, *(sink.dtype for sink in self._sinks)]))
        fitted = [largest if dtype is None else largest.to(getattr(torch, dtype)) for dtype in dtypes]
        finite = torch.stack([torch.isfinite(values) for values in fitted], dim=1)
        if finite.all():
            return
        record, which, member = (int(i) for i in finite.logical_not().nonzero()[0])
        (site, forward, _), dtype = self._largest[record], dtypes[which]
        where = (
            f"prompt '{self.members[member][1].text}', layer {site.layer}, feature {site.feature}, "
            f"timestep {self._path.steps[forward].timestep:g}"
        )
        if dtype is not None:
            raise ConfigError(f"a value does not fit {dtype}: {where}", "set collect.feature_dtype to bfloat16 or float32")
        raise ConfigError(f"a value is not finite: {where}", "the model itself gave it; try dtype: float32")
