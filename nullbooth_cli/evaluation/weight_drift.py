"""What an edit did to the weights: the drift of those that projectors protect, and the names of all others that changed.

No pictures are needed. norm(dW K) / norm(W K) follows from the second moment of the recorded inputs K; of a parameter without a
projector nothing can be said but that it changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import tensor_digest

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Weights:
    """Digests of all tensors of a pipeline by component and name, and the values `[M, D]` of the protected weights by name."""

    digests: Mapping[str, str]
    protected: Mapping[str, Floats]


def weights_of(pipe: Any, protected: Sequence[str]) -> Weights:
    """What is needed of a pipeline's weights once it is gone. Raises ConfigError for another architecture. Cost: one read."""
    dtype = str(denoiser_of(pipe).dtype).removeprefix("torch.")
    digests = {
        f"{component}.{name}": tensor_digest(tensor, dtype)
        for component, module in sorted(pipe.components.items())
        if isinstance(module, nn.Module) and component != "safety_checker"
        for name, tensor in module.state_dict().items()
    }
    tensors = denoiser_of(pipe).state_dict()
    missing = [name for name in protected if name not in tensors]
    if missing:
        raise ConfigError(
            f"{type(pipe).__name__} has {len(missing)} protected weights less than the base, such as {missing[0]}",
            "an edited model has the architecture of its base; a LoRA is fused, or loaded from its own file",
        )
    return Weights(digests, {name: tensors[name].float().cpu().numpy() for name in protected})


def require_same_architecture(base: Weights, edited: Weights, place: str) -> None:
    """Raise ConfigError for a protected weight of another shape."""
    for name, weight in base.protected.items():
        if edited.protected[name].shape != weight.shape:
            raise ConfigError(
                f"{name} of {place} has the shape {list(edited.protected[name].shape)}, in the base {list(weight.shape)}",
                "an edited model has the architecture of its base",
            )


def drift_documents(store: Store, heldout: Store | None, base: Weights, edited: Sequence[Weights]) -> list[dict[str, Any]]:
    """For each edited model: norm(dW K) / norm(W K) of each protected weight on the collected and on the held-out inputs K, and
    the names of the other parameters that changed. Cost: one read of the moments."""
    entries: list[list[dict[str, Any]]] = [[] for _ in edited]
    for site in store.sites:
        moment = _moment(store, site)
        unknown = None if heldout is None else _moment(heldout, site)
        for found, weights in zip(entries, edited, strict=True):
            for name in site.weights:
                weight = base.protected[name]
                delta = weights.protected[name].astype(np.float64) - weight
                found.append(
                    {
                        "weight": name,
                        "drift": relative_drift(delta, weight, moment),
                        "heldout_drift": None if unknown is None else relative_drift(delta, weight, unknown),
                    }
                )
    return [_drift_document(base, weights, found) for weights, found in zip(edited, entries, strict=True)]


def _moment(store: Store, site: Site) -> NDArray[np.float64]:
    return second_moment(pooled(store, site))


def _drift_document(base: Weights, edited: Weights, entries: list[dict[str, Any]]) -> dict[str, Any]:
    changed = [name for name in {**base.digests, **edited.digests} if base.digests.get(name) != edited.digests.get(name)]
    unprotected = [name for name in changed if name.partition(".")[2] not in base.protected]
    heldout = [entry["heldout_drift"] for entry in entries if entry["heldout_drift"] is not None]
    return {
        "largest": max(entry["drift"] for entry in entries),
        "largest_heldout": max(heldout, default=None),
        "protected_changed": len(changed) - len(unprotected),
        "unprotected_changed": unprotected,
        "weights": entries,
    }
