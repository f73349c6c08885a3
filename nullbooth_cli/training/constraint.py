"""The projectors in training: whatever an optimizer does, the weights keep what they do to the known inputs.

    constraint = nb.constrain(pipe.unet, nb.open_store("run.zarr"))     # before the optimizer is built
    print(constraint.report())

- A weight that trains becomes W0 + D P, and D begins at zero. A LoRA adapter becomes B (A P). The constraint holds for any D, A
  and B, so momentum, weight decay, clipping, averaging and mixed precision cannot break it.
- Everything else that would train is frozen (or refused, or let through with a warning).
- The model saves and loads plain weights and ordinary LoRA files; `parametrization.py` says how.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.training.parametrization import (
    ORIGINAL,
    TOLERANCE,
    NullSpace,
    constrain_weight,
    initial_weight,
    is_constrained,
    trained_parameter,
)

SAVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NOT_IN_STORE = "the store has no projector for it"
BIAS = "a bias changes every output"
OTHER_ADAPTER = "an adapter that is not plain LoRA changes a protected weight in its own way"


@dataclass(frozen=True)
class Report:
    """What trains and what does not, by parameter name. `print` it, or read its fields.

    `constrained`: (null_dim, dim) of what acts within a null space only; its change cannot reach the known inputs.
    `safe`: trains freely, behind a constrained lora_A. `frozen`: does not train. `unprotected`: trains without a constraint, why.
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
    model: nn.Module, store: OpenStore, *, unprotected: Literal["freeze", "refuse", "allow"] = "freeze"
) -> "Constraint":
    """Constrain every trainable weight of a denoiser that the store protects, in place; call it before the optimizer is built.

    `unprotected` says what becomes of other parameters that would train. Raises ConfigError for a model whose protected weights
    are not those that were collected from, for projectors per timestep, for LoRA adapters that were trained without the
    constraint, if nothing would be constrained, and, with "refuse", for unprotected parameters; StageError before `project` is
    complete. Nothing is changed then.

    Memory: a copy of every weight that trains in full, and the factors of P. Cost: 4 M D F operations for each weight `[M, D]`
    and forward, about as many backward; for LoRA M is the rank.
    """
    if unprotected not in ("freeze", "refuse", "allow"):
        raise ConfigError(f"unprotected={unprotected!r}", "freeze, refuse or allow")
    if any(is_constrained(module) for module in model.modules()):
        raise ConfigError("this model is constrained already", "call merge() of its constraint first, or load the model anew")
    projectors = store.projectors({plain_name(name): tensor for name, tensor in model.state_dict().items()})
    spaces = {id(projector): NullSpace(projector) for projector in projectors.values()}
    names = {plain_name(name): name for name, _ in model.named_parameters()}
    weights = [
        _Weight.find(model, weight, names[weight], site, spaces[id(projectors[weight])])
        for site in store.sites()
        for weight in site.weights
    ]
    constraint = Constraint(model, store, weights)
    report = constraint.report()
    others = report.unprotected
    if not report.constrained:
        raise ConfigError(
            f"none of the {len(weights)} protected weights would train" + _counts(others),
            "before constrain(), call requires_grad_(True) on what should train, or add a LoRA (pipe.unet.add_adapter)",
        )
    if others and unprotected == "refuse":
        raise ConfigError(
            "parameters would train without a constraint:" + _counts(others), "freeze them, or unprotected='freeze'"
        )
    constraint._hold()
    if others and unprotected == "allow":
        warnings.warn("parameters train without a constraint:" + _counts(others), stacklevel=2)
    else:
        for name in others:
            model.get_parameter(name).requires_grad_(False)
    return constraint


class Constraint:
    """A model that trains under a constraint: what it lets train, how far it has drifted, and the way back to a plain model."""

    def __init__(self, model: nn.Module, store: OpenStore, weights: list["_Weight"]) -> None:
        self._model, self._store, self._weights = model, store, weights
        self._moments: dict[str, NDArray[np.float64]] = {}
        self._releases: list[Callable[[], None]] = []

    def _hold(self) -> None:
        for weight in self._weights:
            weight.check()
        self._releases = [constrain_weight for weight in self._weights for constrain_weight in weight.hold()]

    def report(self) -> Report:
        """What is constrained, safe, frozen and unprotected now: what was let loose after `constrain()` shows."""
        spaces = {id(parameter): weight.space for weight in self._weights for parameter in weight.constrained()}
        behind = {id(parameter) for weight in self._weights for parameter in weight.safe()}
        constrained: dict[str, tuple[int, int]] = {}
        unprotected: dict[str, str] = {}
        safe, frozen = [], []
        for name, parameter in self._model.named_parameters():
            if space := spaces.get(id(parameter)):
                constrained[name.replace(ORIGINAL, "weight")] = space.null_dim, space.dim
            elif not parameter.requires_grad:
                frozen.append(name)
            elif id(parameter) in behind:
                safe.append(name)
            else:
                unprotected[name] = self._why(plain_name(name))
        return Report(constrained, tuple(safe), tuple(frozen), unprotected)

    def _why(self, name: str) -> str:
        if not any(name.startswith(weight.name.removesuffix("weight")) for weight in self._weights):
            return NOT_IN_STORE
        return BIAS if name.endswith(".bias") else OTHER_ADAPTER

    def drift(self, dtype: torch.dtype | None = None) -> dict[str, float]:
        """norm(dW K0) / norm(W0 K0) of every constrained weight, on all inputs that were collected, exact from their moments.

        dW is what the weight and its active adapters do now beyond W0; with a dtype, what they would do if both models were saved
        in it. Raises ConfigError after `merge()`, and while PEFT holds adapters merged.

        Memory: 8 D^2 bytes for each site, read the first time (for each timestep). Cost: 4 M D^2 operations for each weight, in
        float64 on the CPU.
        """
        if not self._releases:
            raise ConfigError("this constraint was merged, and what the weights were is gone", "call drift() before merge()")
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


def plain_name(name: str) -> str:
    """The name of a parameter in the model as it was collected from: without what PEFT and a constraint wrap around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(ORIGINAL, "weight")


def _counts(others: Mapping[str, str]) -> str:
    first = {why: name for name, why in reversed([*others.items()])}
    return "".join(f"\n  {count}, such as {first[why]}: {why}" for why, count in Counter(others.values()).items())


@dataclass(frozen=True)
class _Weight:
    """One weight of the store in the model: the linear layer that has it, and the LoRA around that layer.

    `full`: the weight itself is to train. `adapters`: those of plain LoRA that are.
    """

    name: str
    site: Site
    space: NullSpace
    linear: nn.Module
    full: bool
    lora: Any = None  # peft's LoraLayer
    adapters: tuple[str, ...] = ()

    @classmethod
    def find(cls, model: nn.Module, name: str, actual: str, site: Site, space: NullSpace) -> "_Weight":
        path = actual.removesuffix(".weight")
        linear = model.get_submodule(path)
        full = trained_parameter(linear).requires_grad
        if path.endswith(".base_layer"):
            from peft.tuners.lora import LoraLayer

            lora: Any = model.get_submodule(path.removesuffix(".base_layer"))
            if isinstance(lora, LoraLayer):
                plain = [adapter for adapter in lora.lora_A if adapter not in lora.lora_variant]  # DoRA is a variant
                # A frozen A is no shelter: B alone moves the weight wherever A looks.
                train = [a for a in plain if any(part[a].weight.requires_grad for part in (lora.lora_A, lora.lora_B))]
                return cls(name, site, space, linear, full, lora, tuple(train))
        return cls(name, site, space, linear, full)

    def safe(self) -> list[nn.Parameter]:
        return [self.lora.lora_B[adapter].weight for adapter in self.adapters]

    def constrained(self) -> list[nn.Parameter]:
        return [trained_parameter(module) for module in self._modules()]

    def _modules(self) -> list[nn.Module]:
        return [self.linear] * self.full + [self.lora.lora_A[adapter] for adapter in self.adapters]

    def check(self) -> None:
        """Raise ConfigError for an adapter that does already what the constraint forbids."""
        for adapter in self.adapters:
            a, b = (part[adapter].weight.detach().cpu().double() for part in (self.lora.lora_A, self.lora.lora_B))
            if self.space.share_outside(b @ a, compared_with=b @ a) > TOLERANCE:
                raise ConfigError(
                    f"the LoRA adapter '{adapter}' of {self.name} was trained without this constraint",
                    "delete it and add a new one, or load one that was saved under the same store",
                )

    def hold(self) -> list[Callable[[], None]]:
        return [constrain_weight(module, self.space, from_here=module is self.linear) for module in self._modules()]

    @torch.no_grad()
    def change(self, dtype: torch.dtype | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(dW, W0), `[M, D]` float64, of the weight and its active adapters, as they are or as saved in a dtype."""

        def at(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor if dtype is None else tensor.to(dtype)).cpu().double()

        start = at(initial_weight(self.linear))
        change = at(self.linear.weight) - start  # type: ignore[arg-type]  # to torch it may be a module
        if self.lora is not None and self.lora.merged:
            raise ConfigError(f"an adapter is merged into {self.name}", "unmerge it first: what the weight was is not known else")
        if self.lora is not None and not self.lora.disable_adapters:
            for adapter in self.lora.active_adapters:
                if adapter in self.lora.lora_A:
                    a, b = (at(part[adapter].weight) for part in (self.lora.lora_A, self.lora.lora_B))
                    change += self.lora.scaling[adapter] * (b @ a)
        return change.numpy(), start.numpy()
