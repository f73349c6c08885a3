"""Takes the tensors of one unit from the hooks, checks them, and hands them to the sinks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nullbooth_cli.collect.find_sites import RecordableModel, split_branches
from nullbooth_cli.collect.sinks import Sink
from nullbooth_cli.collect.token_sample import sample_tokens
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import DataError, ModelError
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection


class Recorder:
    """Checks the tensors of one unit, and hands that of each site to the sinks.

    `members` are the unit's prompts, each with its row in the store. On CUDA nothing here waits for the device: conditions are
    computed there, and `check` reads them after the unit.
    """

    def __init__(
        self, model: RecordableModel, members: Sequence[tuple[int, Prompt]], *, branches: str, sinks: Sequence[Sink]
    ) -> None:
        self.members, self.num_forwards = members, 0
        self._path, self._site_of, self._branches, self._sinks = model.path, model.found.site_of, branches, sinks
        self._tokens_per_prompt = model.found.tokens_per_prompt
        self._rows = [row for row, _ in members]
        self._shared: dict[Site, torch.Tensor] = {}  # of this forward, for sites that feed several projections
        self._constant: dict[Site, tuple[torch.Tensor, int]] = {}  # of the first forward, with its version
        self._changed: list[tuple[Projection, torch.Tensor]] = []
        self._largest: list[tuple[Site, int, torch.Tensor]] = []
        self._padding = Padding({})

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Note, from a forward's arguments, which tokens of the text are padding."""
        self._padding = Padding(arguments)

    def receive(self, projection: Projection, forward: int, tensor: torch.Tensor) -> None:
        """Take a projection's tensor `[rows, L, D]` of a forward. Raises ModelError if it is not the one that its site shares."""
        if forward == self.num_forwards:
            self._shared.clear()
            self.num_forwards += 1
        site = self._site_of[projection]
        if self._was_recorded(site, projection, tensor, forward):
            return
        seen = values = self._of_prompts(site, projection, tensor, forward)
        attended = self._padding.attended(projection, tensor)
        if attended is not None:
            padding = self._of_prompts(site, projection, ~attended[..., None], forward)
            # Padding becomes NaN in `values`. `nullspace.moments.fold` leaves out tokens whose first value is NaN.
            seen, values = (values.masked_fill(padding, filling) for filling in (0.0, torch.nan))
        # The largest magnitude of each prompt is enough: amax of NaN is NaN, and rounding to a dtype preserves the order.
        self._largest.append((site, forward, seen.abs().flatten(1).amax(1).float()))
        for sink in self._sinks:
            sink.receive(site, forward, self._rows, values)

    def _of_prompts(self, site: Site, projection: Projection, tensor: torch.Tensor, forward: int) -> torch.Tensor:
        """`[B, L, D]` of `[rows, L, D]`: one entry a prompt, of the image a sample of tokens."""
        values, limit = split_branches(tensor, len(self.members), self._branches), self._tokens_per_prompt
        if limit is None or projection.from_text:
            return values
        return sample_tokens(values, limit, seed=self._path.seed, rows=self._rows, step=forward, site=site.name)

    def _was_recorded(self, site: Site, projection: Projection, tensor: torch.Tensor, forward: int) -> bool:
        """Whether the tensor was recorded before: for another projection, or at an earlier timestep."""
        if site in self._shared:
            if self._shared[site].data_ptr() != tensor.data_ptr():
                raise ModelError(
                    f"{projection} no longer shares its tensor with {site.name}",
                    "choose another model: the sharing of this one changes along the path",
                )
            return True
        if len(site.weights) > 1:
            self._shared[site] = tensor
        if not site.timestep_free:
            return False
        if forward == 0:
            self._constant[site] = (tensor, tensor._version)
            return False
        first, version = self._constant[site]
        # The same memory, not written to since, needs no comparison.
        if first.data_ptr() != tensor.data_ptr() or first._version != version:
            self._changed.append((projection, (first != tensor).any()))
        return True

    def check(self) -> None:
        """Raise ModelError or DataError if something in the unit was wrong. Waits for the device once."""
        if self._changed and torch.stack([changed for _, changed in self._changed]).any():
            wrong = next(projection for projection, changed in self._changed if changed)
            raise ModelError(
                f"{wrong} changes with the timestep after the first two steps",
                "choose another model: the sharing of this one changes along the path",
            )
        largest = torch.stack([of_prompts for *_, of_prompts in self._largest]).cpu()
        dtypes = list(dict.fromkeys([None, *(sink.dtype for sink in self._sinks)]))
        fitted = [largest if dtype is None else largest.to(getattr(torch, dtype)) for dtype in dtypes]
        finite = torch.stack([torch.isfinite(values) for values in fitted], dim=1)
        if finite.all():
            return
        record, which, member = (int(i) for i in finite.logical_not().nonzero()[0])
        (site, forward, _), dtype = self._largest[record], dtypes[which]
        place = (
            f"prompt '{self.members[member][1].text}', layer {site.layer}, feature {site.feature}, "
            f"timestep {self._path.steps[forward].timestep:g}"
        )
        if dtype is not None:
            raise DataError(f"a value does not fit {dtype}: {place}", "set collect.feature_dtype to bfloat16 or float32")
        raise DataError(f"a value is not finite: {place}", "set dtype to float32: the model itself computed it")
