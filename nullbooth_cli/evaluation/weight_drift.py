"""The change of an edited model's weights: the drift of the protected ones, and the names of all others that changed.

No pictures are needed: norm(dW K) / norm(W K) follows from the second moment of the recorded inputs K. For parameters without a
projector, only their change is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import SECOND_DENOISERS
from nullbooth_cli.errors import ConfigError, DataError
from nullbooth_cli.evaluation.answer import Drift, WeightDrift
from nullbooth_cli.model.denoisers import denoiser_of, denoiser_weights
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.pooling import moment_of, pooled
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.store import Store, tasks_of
from nullbooth_cli.tensors import tensor_digest

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Weights:
    """Digests of all tensors of a pipeline by component and name, and the values of the protected weights by name.

    A value is `[M, D]`, or `[M, D, 1, 1]` of a 1x1 convolution.
    """

    digests: Mapping[str, str]
    protected: Mapping[str, Floats]


def weights_of(pipe: Pipeline, protected: Sequence[str]) -> Weights:
    """Digests and protected weights of a pipeline. Cost: one read of all.

    Raises ConfigError if it lacks a protected weight, DataError if one is not finite.
    """
    _require_finite(pipe)
    dtype = str(denoiser_of(pipe).dtype).removeprefix("torch.")
    digests = {
        f"{component}.{name}": tensor_digest(tensor, dtype)
        for component, module in sorted(pipe.components.items())
        if isinstance(module, nn.Module) and component != "safety_checker"
        for name, tensor in module.state_dict().items()
    }
    tensors = denoiser_weights(pipe)
    missing = [name for name in protected if name not in tensors]
    if missing:
        raise ConfigError(
            f"{type(pipe).__name__} has {len(missing)} protected weights fewer than the base, such as {missing[0]}",
            "name a model of the architecture of the base; fuse a LoRA, or name its own file",
        )
    return Weights(digests, {name: tensors[name].float().cpu().numpy() for name in protected})


def _require_finite(pipe: Pipeline) -> None:
    for name, tensor in denoiser_weights(pipe).items():
        if not tensor.isfinite().all():
            raise DataError(f"{name} of the {type(pipe).__name__} is not finite", "train it again, with a lower learning rate")


def require_same_architecture(base: Weights, shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Raise ConfigError for a protected weight that is missing in a model of these shapes, by name, or has another shape."""
    hint = "name a model of the architecture of the base; fuse a LoRA, or name its own file"
    missing = [name for name in base.protected if name not in shapes]
    if missing:
        raise ConfigError(f"{place} lacks {len(missing)} protected weights of the base, such as {missing[0]}", hint)
    for name, weight in base.protected.items():
        if shapes[name] != weight.shape:
            raise ConfigError(f"{name} of {place} has the shape {list(shapes[name])}, in the base {list(weight.shape)}", hint)


def weight_drifts(store: Store, heldout: Store | None, base: Weights, edited: Sequence[Weights]) -> list[Drift]:
    """The drift of each edited model on the collected inputs, and on those of the `heldout` store. Cost: one read of the moments.

    The drift of a changed weight whose outputs were all zero is NaN. Where moments are kept as factors, a drift is the most that
    it can be.
    """
    entries: list[list[WeightDrift]] = [[] for _ in edited]
    tasks = tasks_of(store, "hard")
    for site in store.sites:
        moment = moment_of(pooled(store, site, tasks=tasks))
        heldout_moment = None if heldout is None else moment_of(pooled(heldout, site))
        for found, weights in zip(entries, edited, strict=True):
            for name in site.weights:
                weight = base.protected[name].reshape(-1, site.dim)
                delta = weights.protected[name].reshape(-1, site.dim).astype(np.float64) - weight
                on_heldout = None if heldout_moment is None else relative_drift(delta, weight, heldout_moment)
                found.append(WeightDrift(name, relative_drift(delta, weight, moment), on_heldout))
    return [_drift(base, weights, found) for weights, found in zip(edited, entries, strict=True)]


def _drift(base: Weights, edited: Weights, weights: Sequence[WeightDrift]) -> Drift:
    changed = [name for name in {**base.digests, **edited.digests} if base.digests.get(name) != edited.digests.get(name)]
    unprotected = tuple(name for name in changed if _name_in_store(name) not in base.protected)
    heldout = [each.heldout_drift for each in weights if each.heldout_drift is not None]
    return Drift(
        largest=float(np.max([each.drift for each in weights])),  # of NaN, too
        largest_heldout=float(np.max(heldout)) if heldout else None,
        protected_changed=len(changed) - len(unprotected),
        unprotected_changed=unprotected,
        weights=tuple(weights),
    )


def _name_in_store(name: str) -> str:
    """The name that a tensor has in a store, from its name with the part of the pipeline: only second denoisers keep theirs."""
    part, _, of_part = name.partition(".")
    return name if part in SECOND_DENOISERS else of_part
