"""What an edit does: its measures, the plan of one that is not applied yet, and the report of one that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from nullbooth_cli.editing.contexts import InContext
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.editing.verdict import EditVerdict, drift, elsewhere, missing
from nullbooth_cli.formatting import counted

Targets = str | Sequence[str]  # of a source: one text, or several whose mean is meant


def several(targets: Targets) -> tuple[str, ...]:
    """The targets of a source."""
    return (targets,) if isinstance(targets, str) else tuple(targets)


@dataclass(frozen=True, kw_only=True)
class EditedWeight:
    """The edit of one weight.

    `missing`: norm(W' K1 - V1) / norm(W K1 - V1), 0 for a complete edit and 1 for none. `drift`: norm(dW K0) / norm(W K0) on all
    inputs that were collected, and `heldout` the same on those of the held-out prompts, None without any. `change`: norm(dW) /
    norm(W).
    """

    missing: float
    drift: float
    change: float
    heldout: float | None = None


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """An edit: its method, its choice of tokens, the pairs of prompts, and each changed weight by name.

    `keys` are the edited inputs K1^T `[N, D]`, float64, by the name of their site; a later edit preserves them. `tensors` are the
    digests of all k and v weights of the edited model in the store's dtype, changed or not, by name, as a store records them.
    `by_pair` is what is missing of each pair alone, without noisy copies, by its source: the largest of all weights.
    `in_context` tells whether the edit holds in prompts that have what is edited beside other words; empty without any.
    `cut_off` names the prompts that are longer than the model takes; None if all fit.
    """

    method: str
    tokens: str
    pairs: Mapping[str, Targets]
    weights: Mapping[str, EditedWeight]
    keys: Mapping[str, Rows] = field(repr=False)
    tensors: Mapping[str, str] = field(repr=False)
    by_pair: Mapping[str, float]
    in_context: Sequence[InContext] = ()
    cut_off: str | None = None

    @property
    def missing(self) -> float:
        """The largest `missing` of all weights."""
        return float(np.max([weight.missing for weight in self.weights.values()]))

    @property
    def verdicts(self) -> tuple[EditVerdict, ...]:
        """What is missing of the pair furthest from its target and, if any, in other prompts with what is edited; the drift."""
        heldout = {} if self.heldout is None else {"held-out": self.heldout}
        of_contexts = [elsewhere(self.in_context)] if self.in_context else []
        return (missing(self.by_pair), *of_contexts, drift({"preserved": self.drift, **heldout}))

    @property
    def is_reached(self) -> bool:
        """Whether every target is reached, in other prompts too."""
        return all(verdict.is_good for verdict in self.verdicts if verdict.question != "drift")

    @property
    def drift(self) -> float:
        """The largest `drift` of all weights."""
        return float(np.max([weight.drift for weight in self.weights.values()]))

    @property
    def heldout(self) -> float | None:
        """The largest `heldout` of all weights; None without held-out prompts."""
        found = [weight.heldout for weight in self.weights.values() if weight.heldout is not None]
        return float(np.max(found)) if found else None

    def __str__(self) -> str:
        first = f"{counted(len(self.pairs), 'prompt')} edited in {len(self.weights)} weights ({self.method})"
        return "\n".join([first, *(line for verdict in self.verdicts for line in verdict.lines)])


@dataclass(frozen=True, kw_only=True)
class EditPlan:
    """An edit that is solved and not applied: the `report` that it will have, and the new weights by name, in their own dtype.

    `wanted` is (K* - K1)^T `[N, D]`, float64, by the name of the site, row by row beside the report's `keys`.
    """

    report: EditReport
    after: Mapping[str, torch.Tensor] = field(repr=False)
    wanted: Mapping[str, Rows] = field(repr=False)
    denoiser: nn.Module = field(repr=False)

    def apply(self) -> EditReport:
        """Write the new weights into the denoiser that the plan was made for, which must not have changed since."""
        for name, weight in self.after.items():
            self.denoiser.get_parameter(name).data.copy_(weight)
        return self.report
