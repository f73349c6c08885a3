"""Records the tensors of one unit as hooks see them, checks them, and hands them to the sinks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nullbooth_cli.collect.find_sites import MASK_ARGUMENT, FoundSites, split_branches
from nullbooth_cli.collect.sinks import Sink
from nullbooth_cli.collect.token_sample import sample_tokens
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.projections import Projection


class Recorder:
    """Checks the tensors of one unit as they are seen, and hands each recording to the sinks.

    On CUDA nothing here waits for the device: what must hold is noted there, and `check` reads it after the unit.
    """

    def __init__(
        self, path: DenoisingPath, members: list[tuple[int, Prompt]], found: FoundSites, branches: str, sinks: Sequence[Sink]
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
