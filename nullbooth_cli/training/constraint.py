"""Constrained training: whatever an optimizer does, the outputs of the weights on the collected inputs stay the same.

    constraint = nb.constrain(pipe.unet, nb.open_store("run.zarr"))     # before the optimizer is built
    print(constraint.report())

- A weight that trains becomes W0 + D P, and D starts at zero. A LoRA adapter becomes B (A P). The constraint holds for any D, A
  and B, so momentum, weight decay, clipping, averaging and mixed precision cannot break it.
- Every other parameter that would train is frozen (or refused, or trains with a warning).
- The model saves and loads plain weights and ordinary LoRA files; see `parametrization.py`.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.api import Moment
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.tensors import plain_name
from nullbooth_cli.training.parametrization import (
    TOLERANCE,
    TorchProjector,
    constrain_weight,
    initial_weight,
    is_constrained,
    saved_name,
    trained_parameter,
)

SAVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NOT_IN_STORE = "the store has no projector for it"
BIAS = "a bias changes every output"
OTHER_ADAPTER = "an adapter that is not plain LoRA changes a protected weight in its own way"


class ProjectorSource(Protocol):
    """The source of a constraint. `nb.OpenStore` is one; another may cut its projectors in another way."""

    def sites(self) -> Sequence[Site]:
        """The sites whose weights are protected."""

    def moment(self, site: Site) -> Moment:
        """The second moment of all inputs that were collected at a site."""

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        """The projector of each weight of the sites, by name; weights of one site have equal ones.

        `model` is the state dict of the model to constrain. Raises an error if the projectors do not belong to it.
        """


@dataclass(frozen=True, kw_only=True)
class ConstraintReport:
    """The parameters of a model, by name: those that train and those that do not. `print` it, or read its fields.

    `constrained`: (null_dim, dim) of those that act within a null space only; their change cannot reach the collected inputs.
    `safe`: trains freely, behind a constrained lora_A. `frozen`: does not train. `unprotected`: trains without a constraint, and
    why.
    """

    constrained: Mapping[str, tuple[int, int]]
    safe: tuple[str, ...]
    frozen: tuple[str, ...]
    unprotected: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"constrained {len(self.constrained)}"]
        lines += [f"  {name}  {null_dim} of {dim} dimensions" for name, (null_dim, dim) in self.constrained.items()]
        lines += [f"free behind them {len(self.safe)}", f"frozen {len(self.frozen)}", f"unprotected {len(self.unprotected)}"]
        return "\n".join([*lines, *(f"  {name}  {reason}" for name, reason in self.unprotected.items())])


def constrain(
    model: nn.Module, store: ProjectorSource, *, unprotected: Literal["freeze", "refuse", "allow"] = "freeze"
) -> "Constraint":
    """Constrain every trainable weight of a denoiser that the store protects, in place; call it before the optimizer is built.

    Other parameters that would train are frozen; `unprotected="refuse"` raises ConfigError instead, and "allow" warns and lets
    them train.

    Raises ConfigError for a model whose protected weights are not those that were collected from, for per-timestep projectors,
    and if nothing would be constrained. Raises ModelError for LoRA adapters that were trained without the constraint, StageError
    before `project` is complete. After an error the model is as it was.

    Memory: a copy of every weight that trains in full, and the factors of P. Cost: 4 M D F operations for each weight `[M, D]`
    and forward, about as many backward; for LoRA M is the rank.
    """
    if unprotected not in ("freeze", "refuse", "allow"):
        raise ConfigError(f"unprotected={unprotected!r} is not a choice", "set unprotected to freeze, refuse or allow")
    if any(is_constrained(module) for module in model.modules()):
        raise ConfigError("this model is constrained already", "call merge() of its constraint first, or load the model again")
    weights = _protected_weights(model, store)
    constraint = Constraint(model, store, weights)
    report = constraint.report()
    others = report.unprotected
    if not report.constrained:
        raise ConfigError(
            f"none of the {len(weights)} protected weights would train" + _counts(others),
            "before constrain(), call requires_grad_(True) on the weights to train, or add a LoRA (pipe.unet.add_adapter)",
        )
    if others and unprotected == "refuse":
        raise ConfigError(
            "parameters would train without a constraint:" + _counts(others), "freeze them, or set unprotected to freeze"
        )
    constraint._apply()
    if others and unprotected == "allow":
        warnings.warn("parameters train without a constraint:" + _counts(others), stacklevel=2)
    else:
        for name in others:
            model.get_parameter(name).requires_grad_(False)
    return constraint


class Constraint:
    """The constraint on a model: `report` lists its parameters, `drift` measures it, `merge` makes it plain again."""

    def __init__(self, model: nn.Module, store: ProjectorSource, weights: Sequence["_ProtectedWeight"]) -> None:
        self._model, self._store, self._weights = model, store, weights
        self._moments: dict[str, NDArray[np.float64]] = {}
        self._releases: list[Callable[[], None]] = []

    def _apply(self) -> None:
        for weight in self._weights:
            weight.check()
        self._releases = [release for weight in self._weights for release in weight.constrain()]

    def report(self) -> ConstraintReport:
        """The state now: a parameter that was unfrozen after `constrain()` is listed as unprotected."""
        projectors = {id(parameter): weight.projector for weight in self._weights for parameter in weight.constrained()}
        behind = {id(parameter) for weight in self._weights for parameter in weight.safe()}
        constrained: dict[str, tuple[int, int]] = {}
        unprotected: dict[str, str] = {}
        safe, frozen = [], []
        for name, parameter in self._model.named_parameters():
            if projector := projectors.get(id(parameter)):
                constrained[saved_name(name)] = projector.null_dim, projector.dim
            elif not parameter.requires_grad:
                frozen.append(name)
            elif id(parameter) in behind:
                safe.append(name)
            else:
                unprotected[name] = self._reason(plain_name(saved_name(name)))
        return ConstraintReport(constrained=constrained, safe=tuple(safe), frozen=tuple(frozen), unprotected=unprotected)

    def _reason(self, name: str) -> str:
        """The reason that a parameter is unprotected."""
        if not any(name.startswith(weight.name.removesuffix("weight")) for weight in self._weights):
            return NOT_IN_STORE
        return BIAS if name.endswith(".bias") else OTHER_ADAPTER

    def drift(self, dtype: torch.dtype | None = None) -> dict[str, float]:
        """norm(dW K0) / norm(W0 K0) of every constrained weight, on all inputs that were collected, exact from their moments.

        dW is the change that the weight and its active adapters make to W0 now; with a dtype, the change between both models
        saved in it. Raises ConfigError after `merge()`, ModelError while PEFT has adapters merged into a weight.

        Memory: 8 D^2 bytes for each site, read the first time (for each timestep). Cost: 4 M D^2 operations for each weight, in
        float64 on the CPU.
        """
        if not self._releases:
            raise ConfigError(
                "this constraint was merged, and the weights it started from are gone", "call drift() before merge()"
            )
        drifts = {}
        for weight in self._weights:
            if weight.constrained():
                site = weight.site
                if site.name not in self._moments:
                    self._moments[site.name] = self._store.moment(site).second_moment
                drifts[weight.name] = relative_drift(*weight.change(dtype), self._moments[site.name])
        return drifts

    def merge(self) -> dict[str, float]:
        """Make the model plain again, with the weights that it has now (a LoRA keeps its adapters, with A P for A).

        Returns the largest drift for each dtype that the model might be saved in: rounding W moves it out of the null space.
        """
        costs = {str(dtype).removeprefix("torch."): max(self.drift(dtype).values()) for dtype in SAVED_DTYPES}
        for release in self._releases:
            release()
        self._releases = []
        return costs


def _counts(others: Mapping[str, str]) -> str:
    """A line for each reason: the number of parameters, and the first of them."""
    first = {reason: name for name, reason in reversed([*others.items()])}
    return "".join(f"\n  {count}, such as {first[reason]}: {reason}" for reason, count in Counter(others.values()).items())


@dataclass(frozen=True, kw_only=True)
class _ProtectedWeight:
    """One weight of the store, in the model: the linear layer that has it, and the LoRA around that layer.

    `full`: the weight itself is to train. `adapters`: the plain LoRA adapters that are to train.
    """

    name: str
    site: Site
    projector: TorchProjector
    linear: nn.Module
    full: bool
    lora: Any = None  # peft's LoraLayer
    adapters: tuple[str, ...] = ()

    def safe(self) -> list[nn.Parameter]:
        """Each lora_B: its input is silent on the collected inputs."""
        return [self.lora.lora_B[adapter].weight for adapter in self.adapters]

    def constrained(self) -> list[nn.Parameter]:
        """The parameters that act within the null space: the weight, and each lora_A."""
        return [trained_parameter(module) for module in self._modules()]

    def _modules(self) -> list[nn.Module]:
        return [self.linear] * self.full + [self.lora.lora_A[adapter] for adapter in self.adapters]

    def check(self) -> None:
        """Raise ModelError for an adapter that already moves outputs on the collected inputs."""
        for adapter in self.adapters:
            a, b = (part[adapter].weight.detach().cpu().double() for part in (self.lora.lora_A, self.lora.lora_B))
            if self.projector.share_outside(b @ a, compared_with=b @ a) > TOLERANCE:
                raise ModelError(
                    f"the LoRA adapter '{adapter}' of {self.name} was trained without this constraint",
                    "delete it and add a new one, or load one that was saved under the same store",
                )

    def constrain(self) -> list[Callable[[], None]]:
        """Constrain the weight and adapters; returns the functions that undo it."""
        return [constrain_weight(module, self.projector, keep_value=module is self.linear) for module in self._modules()]

    @torch.no_grad()
    def change(self, dtype: torch.dtype | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(dW, W0), `[M, D]` float64, of the weight and its active adapters, as they are or as saved in a dtype."""

        def at(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor if dtype is None else tensor.to(dtype)).cpu().double()

        start = at(initial_weight(self.linear))
        change = at(self.linear.weight) - start  # type: ignore[arg-type]  # to torch it may be a module
        if self.lora is not None and self.lora.merged:
            raise ModelError(f"an adapter is merged into {self.name}", "unmerge it first: its share of the weight is unknown")
        if self.lora is not None and not self.lora.disable_adapters:
            for adapter in self.lora.active_adapters:
                if adapter in self.lora.lora_A:
                    a, b = (at(part[adapter].weight) for part in (self.lora.lora_A, self.lora.lora_B))
                    change += self.lora.scaling[adapter] * (b @ a)
        return change.numpy(), start.numpy()


def _protected_weights(model: nn.Module, store: ProjectorSource) -> list[_ProtectedWeight]:
    """Every weight that the store protects, with one projector for each site."""
    by_weight = store.projectors(model.state_dict())
    names = {plain_name(name): name for name, _ in model.named_parameters()}
    found = []
    for site in store.sites():
        projector = TorchProjector(by_weight[site.weights[0]])
        found += [_find(model, names[weight], name=weight, site=site, projector=projector) for weight in site.weights]
    return found


def _find(model: nn.Module, actual_name: str, *, name: str, site: Site, projector: TorchProjector) -> _ProtectedWeight:
    """The weight `name` of a site; `actual_name` is its name in the model, with or without PEFT's layers around it."""
    path = actual_name.removesuffix(".weight")
    linear = model.get_submodule(path)
    full = trained_parameter(linear).requires_grad
    lora: Any = None
    adapters: tuple[str, ...] = ()
    if path.endswith(".base_layer"):
        from peft.tuners.lora import LoraLayer

        wrapper: Any = model.get_submodule(path.removesuffix(".base_layer"))
        if isinstance(wrapper, LoraLayer):
            lora = wrapper
            plain = [adapter for adapter in lora.lora_A if adapter not in lora.lora_variant]  # DoRA is a variant
            # A frozen A protects nothing: B alone moves the output wherever A is not silent.
            adapters = tuple(a for a in plain if any(part[a].weight.requires_grad for part in (lora.lora_A, lora.lora_B)))
    return _ProtectedWeight(name=name, site=site, projector=projector, linear=linear, full=full, lora=lora, adapters=adapters)
