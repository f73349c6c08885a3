"""The weights of a model that a store protects: where each one is, what trains there, and what its layer computes now.

A weight says what its layer computes only as long as nothing else acts in that layer. Adapters of other tools replace the layer's
`forward`, set hooks on it, or put another module in its place, and none of that is seen in the weight. So a layer is measured by
running it (`computed`); `alterations` names what can be seen from outside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ModelError
from nullbooth_cli.tensors import full_float32, plain_name, tensor_digest
from nullbooth_cli.training.constrainable import FORWARD, FUSED, has_other_forward, is_out_of_use
from nullbooth_cli.training.parametrization import (
    TOLERANCE,
    TorchProjector,
    constrain_weight,
    holds_constraint,
    initial_weight,
    is_constrained,
    trained_parameter,
)

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class LayerFunction:
    """The map of a linear layer or 1x1 convolution: x to x `weight`^T + `bias`; `[M, D]` and `[M]`, float64 on the CPU."""

    weight: Rows
    bias: Rows

    def __sub__(self, other: "LayerFunction") -> "LayerFunction":
        return LayerFunction(self.weight - other.weight, self.bias - other.bias)


@dataclass(frozen=True, kw_only=True)
class ProtectedWeight:
    """One weight of the store, in the model: the linear layer or 1x1 convolution that has it, and the LoRA around that layer.

    `path` is the place of the layer in the model, adapters around it included. `full`: the weight itself is to train.
    `adapters`: the plain LoRA adapters that are to train. `bias` and `digests` are those of the layer as it was.
    """

    name: str
    site: Site
    projector: TorchProjector
    model: nn.Module
    path: str
    linear: nn.Module
    bias: torch.Tensor | None
    digests: dict[str, str]
    full: bool
    lora: Any = None  # peft's LoraLayer
    adapters: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether anything of it was to train."""
        return bool(self._modules())

    def safe(self) -> list[nn.Parameter]:
        """Each lora_B: its input is silent on the collected inputs."""
        return [self.lora.lora_B[adapter].weight for adapter in self.adapters]

    def to_constrain(self) -> list[nn.Parameter]:
        """The parameters that are to act within the null space: the weight, and each lora_A."""
        return [trained_parameter(module) for module in self._modules()]

    def constrained(self) -> list[nn.Parameter]:
        """The parameters that act within the null space now."""
        return [trained_parameter(module) for module in self._modules() if holds_constraint(module)]

    def constrained_adapters(self) -> list[nn.Parameter]:
        """The lora_A among them."""
        return [trained_parameter(module) for module in self._modules() if module is not self.linear and holds_constraint(module)]

    def _modules(self) -> list[nn.Module]:
        # An adapter that was deleted since is not there any more.
        present = [self.lora.lora_A[adapter] for adapter in self.adapters if adapter in self.lora.lora_A]
        return [self.linear] * self.full + present

    def check(self) -> None:
        """Raise ModelError for an adapter that already moves outputs on the collected inputs."""
        for adapter in self.adapters:
            parts = [part[adapter].weight.detach() for part in (self.lora.lora_A, self.lora.lora_B)]
            a, b = (part.cpu().double().flatten(1) for part in parts)
            product = b @ a
            outside = self.projector.share_outside(product, compared_with=product) * float(torch.linalg.norm(product))
            # Two factors that cancel out, as those of an orthogonal start, leave a product of their rounding.
            rounding = torch.finfo(parts[0].dtype).eps * float(torch.linalg.norm(a) * torch.linalg.norm(b))
            if outside > max(TOLERANCE * float(torch.linalg.norm(product)), rounding):
                raise ModelError(
                    f"the LoRA adapter '{adapter}' of {self.name} was trained without this constraint, or did not start at zero",
                    "delete it and add a new one, or load one that was saved under the same store",
                )

    def constrain(self) -> list[Callable[[], None]]:
        """Constrain the weight and adapters; returns the functions that undo it."""
        return [constrain_weight(module, self.projector, keep_value=module is self.linear) for module in self._modules()]

    def alterations(self) -> Iterator[str]:
        """What acts in the layer beside its weight and PEFT's LoRA, as far as it can be seen from outside."""
        layer = self._layer()
        chain = [*_inside(layer)]
        if not chain or chain[-1] is not self.linear:
            yield f"a {type(chain[-1]).__name__} has taken the place of the layer" if chain else "the layer is gone"
        inside = [] if layer is None else [*layer.modules()]
        if any(map(has_other_forward, inside)):
            yield FORWARD
        if any(module._forward_hooks or module._forward_pre_hooks for module in inside):
            yield "a forward hook is set on the layer"
        if any(not holds_constraint(module) for module in self._modules() if is_constrained(module)):
            yield "its weight has a parametrization of something else"
        yield from (f"{type(module).__name__}, which is not plain LoRA" for module in chain[:-1] if not _is_plain_lora(module))
        if layer is not None and is_out_of_use(self.model, self.path):
            yield FUSED

    def computed(self) -> LayerFunction:
        """What the layer that the model now has at this place computes, found by running it.

        Exact for a linear layer, but for rounding in its dtype. Raises ModelError if there is none that takes such inputs.
        Cost: one call for D + 1 vectors, which a convolution takes as pixels.
        """
        layer, weight = self._layer(), self._weight()
        if layer is None or is_out_of_use(self.model, self.path):
            raise ModelError(f"{self.path} is not used any more", "undo what was done to the model after constrain()")
        probes = torch.cat([torch.eye(weight.shape[1]), torch.zeros(1, weight.shape[1])]).to(weight)
        pixels = weight.dim() == 4
        modes = {module: module.training for module in layer.modules()}
        layer.eval()  # no dropout
        try:
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False), full_float32(weight.device):
                found = layer(probes.T[None, :, :, None] if pixels else probes[None])[0]
        finally:
            for module, mode in modes.items():
                module.training = mode
        outputs = (found[..., 0].T if pixels else found).cpu().double().numpy()
        if outputs.shape != (len(probes), len(weight)):
            raise ModelError(f"{self.path} is another layer now", "undo what was done to the model after constrain()")
        return LayerFunction((outputs[:-1] - outputs[-1]).T, outputs[-1])

    def start(self, dtype: torch.dtype | None = None) -> LayerFunction:
        """What the layer computed before training, from W0; or from W0 as saved in a dtype.

        Raises ModelError if W0 is gone: an adapter is merged into the weight, a weight has changed that was not to train, or the
        constraint was taken off by hand.
        """
        if self.lora is not None and self.lora.merged:
            raise ModelError(f"an adapter is merged into {self.name}", "unmerge it first: its share of the weight is unknown")
        weight = initial_weight(self.linear)
        if weight is None:
            weight = self._weight()
            known_in = str(weight.dtype) if str(weight.dtype) in self.digests else next(iter(self.digests))
            if tensor_digest(weight, known_in.removeprefix("torch.")) != self.digests[known_in]:
                raise ModelError(
                    f"{self.name} has changed without the constraint: what it was before is not known any more",
                    "load the model again, and let what is to train require gradients before constrain()",
                )
        return LayerFunction(_rows(weight, dtype), self._bias(self.bias, dtype))

    @torch.no_grad()
    def change(self, dtype: torch.dtype | None = None) -> LayerFunction:
        """What the weight, the bias and the active LoRA adapters add to `start` now, or as saved in a dtype."""
        start = self.start(dtype)
        change = _rows(self._weight(), dtype) - start.weight
        bias = self._bias(self.linear.bias, dtype) - start.bias  # type: ignore[arg-type]  # to torch it may be a module
        if self.lora is not None and not self.lora.disable_adapters:
            for adapter in self.lora.active_adapters:
                if adapter in self.lora.lora_A:
                    a, b = (_rows(part[adapter].weight, dtype) for part in (self.lora.lora_A, self.lora.lora_B))
                    change += self.lora.scaling[adapter] * (b @ a)
                    bias += self.lora.scaling[adapter] * self._bias(self.lora.lora_B[adapter].bias, dtype)
        return LayerFunction(change, bias)

    def unexplained(self) -> LayerFunction | None:
        """The change of what the layer computes, if it is another one than `change` says; else None."""
        start, known, found = self.start(), self.change(), self.computed()
        actual = found - start
        rest, scale = actual - known, 4 * torch.finfo(self._weight().dtype).eps
        is_known = np.linalg.norm(rest.weight) <= scale * np.linalg.norm(start.weight + known.weight) and (
            np.linalg.norm(rest.bias) <= scale * np.linalg.norm(start.bias + known.bias)
        )
        return None if is_known else actual

    def _layer(self) -> nn.Module | None:
        """The module that the model has at this place now."""
        try:
            return self.model.get_submodule(self.path)
        except AttributeError:
            return None

    def _weight(self) -> torch.Tensor:
        weight: Any = self.linear.weight
        return weight.detach()  # type: ignore[no-any-return]  # to torch it may be a module

    def _bias(self, bias: torch.Tensor | None, dtype: torch.dtype | None) -> Rows:
        return np.zeros(len(self._weight())) if bias is None else _float64(bias, dtype)


def find_weight(model: nn.Module, actual_name: str, *, name: str, site: Site, projector: TorchProjector) -> ProtectedWeight:
    """The weight `name` of a site; `actual_name` is its name in the model, with or without PEFT's layers around it."""
    inner = actual_name.removesuffix(".weight")
    path = inner.removesuffix(".base_layer")
    linear: Any = model.get_submodule(inner)
    full = trained_parameter(linear).requires_grad
    lora: Any = None
    adapters: tuple[str, ...] = ()
    if inner != path:
        wrapper: Any = model.get_submodule(path)
        if _is_lora(wrapper):
            lora = wrapper
            plain = [adapter for adapter in lora.lora_A if adapter not in lora.lora_variant]  # DoRA is a variant
            # A frozen A protects nothing: B alone moves the output wherever A is not silent.
            adapters = tuple(a for a in plain if any(part[a].weight.requires_grad for part in (lora.lora_A, lora.lora_B)))
    # Also in the dtypes that a model may be cast to later.
    dtypes = dict.fromkeys([str(linear.weight.dtype), "torch.float16", "torch.bfloat16"])
    return ProtectedWeight(
        name=name,
        site=site,
        projector=projector,
        model=model,
        path=path,
        linear=linear,
        bias=None if linear.bias is None else linear.bias.detach().clone(),
        digests={of: tensor_digest(linear.weight, of.removeprefix("torch.")) for of in dtypes},
        full=full,
        lora=lora,
        adapters=adapters,
    )


def actual_names(model: nn.Module) -> dict[str, str]:
    """The names of a model's parameters, by those in the plain model."""
    return {plain_name(name): name for name, _ in model.named_parameters()}


def _inside(layer: nn.Module | None) -> Iterator[nn.Module]:
    """A layer, and the layers that adapters of PEFT are around, the linear layer last."""
    while layer is not None:
        yield layer
        layer = getattr(layer, "base_layer", None)


def _is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _is_plain_lora(module: Any) -> bool:
    return _is_lora(module) and not module.lora_variant


def _rows(weight: torch.Tensor, dtype: torch.dtype | None) -> Rows:
    """A weight, `[M, D]` or `[M, D, 1, 1]`, as `[M, D]`."""
    return _float64(weight.flatten(1), dtype)


def _float64(tensor: torch.Tensor, dtype: torch.dtype | None) -> Rows:
    """A tensor in float64 on the CPU, rounded to a dtype first."""
    return (tensor if dtype is None else tensor.to(dtype)).detach().cpu().double().numpy()
