"""Takes the tensors of one unit from the hooks, checks them, and hands them to the sinks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nullbooth_cli.collect.branches import by_turn, split_branches
from nullbooth_cli.collect.find_sites import RecordableModel
from nullbooth_cli.collect.sinks import Sink
from nullbooth_cli.collect.token_sample import TokenSampler
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import DataError, ModelError
from nullbooth_cli.model.hooks import Forward
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection


class Recorder:
    """Checks the tensors of one unit, and hands that of each site to the sinks.

    `members` are the unit's prompts, each with its row in the store. On CUDA nothing here waits for the device: conditions are
    computed there, and `check` reads them after the unit.
    """

    def __init__(self, model: RecordableModel, members: Sequence[tuple[int, Prompt]], *, sinks: Sequence[Sink]) -> None:
        self.members, self.num_forwards = members, 0
        self._path, self._site_of, self._sinks = model.path, model.found.site_of, sinks
        self._branches, self._last_turn = by_turn(model.found.branches), model.found.branches[-1].turn
        self._rows = [row for row, _ in members]
        self._sampler = TokenSampler(model.found.tokens_per_prompt, model.path.seed, self._rows, len(model.path.steps))
        self._shared: dict[Site, torch.Tensor] = {}  # of this forward, for sites that feed several projections
        self._constant: dict[tuple[Site, int], tuple[torch.Tensor, int]] = {}  # of a turn's first forward, with its version
        self._parts: dict[Site, list[tuple[torch.Tensor, torch.Tensor | None]]] = {}  # of this step: tensor and padding by turn
        self._changed: list[tuple[Projection, torch.Tensor]] = []
        # The largest and the smallest value of each prompt.
        self._extremes: list[tuple[Site, int, torch.Tensor, torch.Tensor]] = []
        self._padding, self._reads_masks = Padding({}), True
        self._with_text = {site for each, site in self._site_of.items() if each.from_text or each.from_both}

    def begin(self, forward: Forward, arguments: Mapping[str, Any]) -> None:
        """Note a forward, and from its arguments which tokens of the text are padding."""
        self.num_forwards += 1
        self._shared.clear()
        self._padding = Padding(arguments)
        self._reads_masks = any(not s.timestep_free or (s, forward.turn) not in self._constant for s in self._with_text)

    def enter(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Note a layer or block that is about to run, for its mask, unless all text was recorded before."""
        if self._reads_masks:
            self._padding.enter(path, arguments)

    def receive(self, projection: Projection, forward: Forward, tensor: torch.Tensor) -> None:
        """Take a projection's tensor `[rows, L, D]` of a forward. Raises ModelError if it is not the one that its site shares."""
        site = self._site_of[projection]
        if self._was_recorded(site, projection, tensor, forward) or forward.turn not in self._branches:
            return
        attended = self._padding.attended(projection, tensor)
        padding = None if attended is None else self._of_prompts(~attended[..., None], forward)
        self._parts.setdefault(site, []).append((self._of_prompts(tensor, forward), padding))
        if forward.turn == self._last_turn:
            self._hand_over(projection, site, forward.step)

    def _of_prompts(self, tensor: torch.Tensor, forward: Forward) -> torch.Tensor:
        """`[B, L, D]` of a forward's `[rows, L, D]`: the tokens of a prompt in all its recorded branches."""
        return _joined(split_branches(tensor, len(self.members), self._branches[forward.turn]))

    def _hand_over(self, projection: Projection, site: Site, step: int) -> None:
        """Give the sinks what a site had in a step, `[B, L, D]`: one entry a prompt, of the image a sample of tokens."""
        of_turns = self._parts.pop(site)
        seen = values = _joined([tensor for tensor, _ in of_turns])
        padding = None
        if any(mask is not None for _, mask in of_turns):
            padding = _joined([_no_padding(tensor) if mask is None else mask for tensor, mask in of_turns])
        if not projection.from_text:
            of_tokens = None if padding is None else padding[..., 0]
            seen = values = self._sampler.sample(values, step, site.name, of_tokens)
            padding = None if padding is None else self._sampler.sample(padding, step, site.name, of_tokens)
        if padding is not None:
            # Padding becomes NaN in `values`. `nullspace.moments.fold` leaves out tokens whose first value is NaN.
            seen, values = (values.masked_fill(padding, filling) for filling in (0.0, torch.nan))
        # The extremes of each prompt are enough: those of NaN are NaN, and rounding to a dtype preserves the order.
        of_prompts = seen.flatten(1)
        self._extremes.append((site, step, of_prompts.amax(1), of_prompts.amin(1)))
        for sink in self._sinks:
            sink.receive(site, step - site.first_step, self._rows, values)

    def _was_recorded(self, site: Site, projection: Projection, tensor: torch.Tensor, forward: Forward) -> bool:
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
        key = (site, forward.turn)
        if key not in self._constant:
            self._constant[key] = (tensor, tensor._version)
            return False
        first, version = self._constant[key]
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
        most = torch.stack([each for *_, each, _ in self._extremes]).float()
        least = torch.stack([each for *_, each in self._extremes]).float()
        largest = torch.maximum(most, -least).cpu()
        dtypes = list(dict.fromkeys([None, *(sink.dtype for sink in self._sinks)]))
        fitted = [largest if dtype is None else largest.to(getattr(torch, dtype)) for dtype in dtypes]
        finite = torch.stack([torch.isfinite(values) for values in fitted], dim=1)
        if finite.all():
            return
        record, which, member = (int(i) for i in finite.logical_not().nonzero()[0])
        (site, forward, *_), dtype = self._extremes[record], dtypes[which]
        place = (
            f"prompt '{self.members[member][1].text}', layer {site.layer}, feature {site.feature}, "
            f"timestep {self._path.steps[forward].timestep:g}"
        )
        if dtype is not None:
            raise DataError(f"a value does not fit {dtype}: {place}", "set collect.feature_dtype to bfloat16 or float32")
        raise DataError(f"a value is not finite: {place}", "set dtype to float32: the model itself computed it")


def _joined(of_turns: Sequence[torch.Tensor]) -> torch.Tensor:
    return of_turns[0] if len(of_turns) == 1 else torch.cat([*of_turns], dim=1)


def _no_padding(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor[..., :1], dtype=torch.bool)
