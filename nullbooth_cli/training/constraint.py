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
from typing import Literal

import torch
from torch import nn

from nullbooth_cli.datatypes import denoiser_of_weight
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.tensors import plain_name
from nullbooth_cli.training.constrainable import base_changed_by_lora, require_constrainable
from nullbooth_cli.training.estimate import Estimate, estimate_learning
from nullbooth_cli.training.parametrization import TorchProjector, exact, is_constrained, saved_name
from nullbooth_cli.training.projector_source import ProjectorSource, names_inside, projectors_of
from nullbooth_cli.training.protected_weights import ProtectedWeight, actual_names, find_weight

SAVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NOT_IN_STORE = "the store has no projector for it"
BIAS = "a bias changes every output"
OTHER_ADAPTER = "an adapter that is not plain LoRA changes a protected weight in its own way"
LET_LOOSE = "it is protected, but not constrained any more"


@dataclass(frozen=True, kw_only=True)
class ConstraintReport:
    """The parameters of a model, by name: those that train and those that do not. `print` it, or read its fields.

    `constrained`: (null_dim, dim) of those that act within a null space only; their change cannot reach the collected inputs.
    `safe`: trains freely, behind a constrained lora_A. `frozen`: does not train. `unprotected`: trains without a constraint, and
    why. `altered` names protected weights whose layer does something else, as far as it can be seen from outside: a replaced
    `forward`, hooks, another module or adapter, fused projections. The other fields speak of parameters alone.
    """

    constrained: Mapping[str, tuple[int, int]]
    safe: tuple[str, ...]
    frozen: tuple[str, ...]
    unprotected: Mapping[str, str]
    altered: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"constrained {len(self.constrained)}"]
        lines += [f"  {name}  {null_dim} of {dim} dimensions" for name, (null_dim, dim) in self.constrained.items()]
        lines += [f"free behind them {len(self.safe)}", f"frozen {len(self.frozen)}", f"unprotected {len(self.unprotected)}"]
        lines += [f"  {name}  {reason}" for name, reason in self.unprotected.items()]
        lines += [f"altered {len(self.altered)}"] * bool(self.altered)
        return "\n".join([*lines, *(f"  {name}  {reason}" for name, reason in self.altered.items())])


def constrain(
    model: nn.Module,
    store: ProjectorSource,
    *,
    unprotected: Literal["freeze", "refuse", "allow"] = "freeze",
    part: str | None = None,
) -> "Constraint":
    """Constrain every trainable weight of a denoiser that the store protects, in place; call it before the optimizer is built.

    Other parameters that would train are frozen; `unprotected="refuse"` raises ConfigError instead, and "allow" warns and lets
    them train.

    Where the store has several denoisers (Wan 2.2), the weights say which one the model is. `part` names it (`transformer_2`)
    where they cannot, because they are equal.

    Raises ConfigError for a model whose protected weights are not those that were collected from, for per-timestep projectors,
    and if nothing would be constrained. Raises ModelError for LoRA adapters that were trained without the constraint, StageError
    before `project` is complete. After an error the model is as it was.

    Memory: a copy of every weight that trains in full, and the factors of P. Cost: 4 M D F operations for each weight `[M, D]`
    and forward, about as many backward; for LoRA M is the rank.
    """
    if unprotected not in ("freeze", "refuse", "allow"):
        raise ConfigError(f"unprotected={unprotected!r} is not a choice", "set unprotected to freeze, refuse or allow")
    if isinstance(model, nn.Module) and any(is_constrained(module) for module in model.modules()):
        raise ConfigError("this model is constrained already", "call merge() of its constraint first, or load the model again")
    require_constrainable(model, names_inside(store.sites()))
    weights = _protected_weights(model, store, part)
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
    """The constraint on a model.

    `report` lists its parameters, `outlook` tells whether a subject will be learned, `drift` measures what moved, and `merge`
    makes the model plain again.
    """

    def __init__(self, model: nn.Module, store: ProjectorSource, weights: Sequence[ProtectedWeight]) -> None:
        self._model, self._store, self._weights = model, store, weights
        self._moments: dict[str, Moment] = {}
        self._releases: list[Callable[[], None]] = []
        self._is_applied = False

    def _apply(self) -> None:
        for weight in self._weights:
            weight.check()
        self._releases = [release for weight in self._weights for release in weight.constrain()]
        self._is_applied = True
        adapters: dict[TorchProjector, list[nn.Parameter]] = {}
        for weight in self._weights:
            adapters.setdefault(weight.projector, []).extend(weight.constrained_adapters())
        for projector, rows in adapters.items():
            if len(rows) > 1:
                self._releases += _project_together(self._model, projector, rows)

    def report(self) -> ConstraintReport:
        """The state now: a parameter that was unfrozen after `constrain()`, or lost its constraint, is listed as unprotected."""
        projectors = {
            id(parameter): weight.projector
            for weight in self._weights
            for parameter in (weight.constrained() if self._is_applied else weight.to_constrain())
        }
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
        altered = {weight.name: "; ".join(weight.alterations()) for weight in self._weights}
        return ConstraintReport(
            constrained=constrained,
            safe=tuple(safe),
            frozen=tuple(frozen),
            unprotected=unprotected,
            altered={name: how for name, how in altered.items() if how},
        )

    def _reason(self, name: str) -> str:
        """The reason that a parameter is unprotected."""
        if name in {weight.name for weight in self._weights}:
            return LET_LOOSE
        if not any(name.startswith(weight.name.removesuffix("weight")) for weight in self._weights):
            return NOT_IN_STORE
        return BIAS if name.endswith(".bias") else OTHER_ADAPTER

    def outlook(self, texts: torch.Tensor, *, trains_word: bool = False) -> Estimate:
        """Whether a subject will be learned, from its captions `[N, L, D]` as `encode_prompt` gives them: print its `lines`.

        Only constrained weights that read the text alone count: to_k and to_v of a U-Net. `trains_word`: whether the embedding of
        a word trains as well. `training/estimate.py` says what the numbers are worth.

        Raises ConfigError if no such weight trains that reads texts of this width. Cost: see `estimate_learning`.
        """
        dim = texts.shape[-1]
        readers = [each for each in self._weights if each.trains and each.site.timestep_free and each.site.dim == dim]
        projectors = {each.site.weights[0]: each.projector.projector for each in readers}
        estimate = estimate_learning(self._store, projectors, texts, trains_word=trains_word)
        if estimate is None:
            raise ConfigError(
                f"no constrained weight that trains reads only texts of {dim} dimensions",
                "pass what the text encoder gives for the captions, and constrain to_k or to_v of layers that read it",
            )
        return estimate

    def drift(self, dtype: torch.dtype | None = None) -> dict[str, float]:
        """norm(dW K0) / norm(W0 K0) of every constrained weight, on all inputs that were collected, exact from their moments.

        It is the most that it can be where the moments are kept as factors.

        dW is the change that the weight and its active adapters make to W0 now; with a dtype, the change between both models
        saved in it. Each layer is run on D + 1 vectors as well: where it computes something else than its weights say (an adapter
        of another tool, a hook, a bias that trains), the drift is that of what it computes, to within the rounding of its dtype.
        A protected weight that is not constrained is listed too if its layer was altered.

        Raises ConfigError after `merge()`; ModelError while PEFT has adapters merged into a weight, if the layer is out of use,
        and if W0 is gone because a weight changed that was not to train.

        Memory: 8 D^2 bytes for each site, read the first time (for each timestep). Cost: 4 M D^2 operations for each weight, in
        float64 on the CPU, and a call of each layer.
        """
        if not self._releases:
            raise ConfigError(
                "this constraint was merged, and the weights it started from are gone", "call drift() before merge()"
            )
        drifts = {}
        for weight in self._weights:
            if weight.trains or any(weight.alterations()):
                site = weight.site
                if site.name not in self._moments:
                    self._moments[site.name] = self._store.moment(site)
                with exact():
                    change, start = weight.unexplained() or weight.change(dtype), weight.start(dtype)
                drifts[weight.name] = relative_drift(change.weight, start.weight, self._moments[site.name], shift=change.bias)
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


def _project_together(model: nn.Module, projector: TorchProjector, rows: Sequence[nn.Parameter]) -> list[Callable[[], None]]:
    """Let every forward of a model project the A of all adapters that share a projector at once; returns what undoes it."""
    hooks = (
        model.register_forward_pre_hook(lambda *_: projector.begin_forward(rows)),
        model.register_forward_hook(lambda *_: projector.end_forward(), always_call=True),
    )
    return [hook.remove for hook in hooks]


def _counts(others: Mapping[str, str]) -> str:
    """A line for each reason: the number of parameters, and the first of them."""
    first = {reason: name for name, reason in reversed([*others.items()])}
    return "".join(f"\n  {count}, such as {first[reason]}: {reason}" for reason, count in Counter(others.values()).items())


def _protected_weights(model: nn.Module, store: ProjectorSource, part: str | None) -> list[ProtectedWeight]:
    """Every weight of the model that the store protects, with one projector for each site."""
    try:
        prefix, by_weight = projectors_of(model, store, part)
    except ConfigError as error:
        if changed := ", ".join(base_changed_by_lora(model)):
            raise ConfigError(
                f"the start of the LoRA adapter {changed} changes the weights of the model itself: {error.message}",
                "load the model again, and add the adapter with init_lora_weights True, 'gaussian' or 'orthogonal'",
            ) from error
        raise
    names = actual_names(model)
    found = []
    for site in store.sites():
        if denoiser_of_weight(site.weights[0]) == prefix:
            projector = TorchProjector(by_weight[site.weights[0]])
            inside = [weight.removeprefix(prefix) for weight in site.weights]
            found += [find_weight(model, names[name], name=name, site=site, projector=projector) for name in inside]
    return found
