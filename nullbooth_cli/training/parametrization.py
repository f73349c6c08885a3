"""A weight that can only change within a null space, and whose module still saves and loads as if it were plain.

1. `constrain_weight()` replaces the weight of a linear layer or 1x1 convolution by start + X P. X is trained. It is the layer's
   own parameter object, so an optimizer that was built before still trains it.
2. `state_dict()` of the layer, or of any model around it, has start + X P under `weight`, and `load_state_dict()` takes it
   back: saving, resuming and exchanging a model work with ordinary files.
3. `release()` leaves a plain weight.

Invariant: neither the start nor the factor of P is a buffer. `.to(float16)` would round buffers, DistributedDataParallel would
send them to every process in every step, and each layer would get a factor of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from nullbooth_cli.errors import ModelError
from nullbooth_cli.nullspace.projector import Projector, apply_factor
from nullbooth_cli.tensors import full_float32

ORIGINAL = "parametrizations.weight.original"  # torch's name of X inside the layer
TOLERANCE = 2.0**-8  # relative: twice what rounding to bfloat16 can move a weight


class _Applied(NamedTuple):
    """X as it was, and X P."""

    rows: torch.Tensor
    version: int
    product: torch.Tensor


class TorchProjector:
    """A projector that applies itself to tensors that train; it copies its factor once to each device and dtype.

    Weights that share an input take one object, also in a copied model. Memory: the factor `[D, F]` for each device and dtype.
    """

    def __init__(self, projector: Projector) -> None:
        self.projector, self.dim, self.null_dim = projector, projector.dim, projector.null_dim
        self._is_complement = projector.is_complement
        self._host = torch.from_numpy(projector.factor)
        self._factors: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._together: dict[int, _Applied] = {}
        self._is_forward = False

    def __deepcopy__(self, _: object) -> "TorchProjector":
        return self

    def begin_forward(self, every: Sequence[torch.Tensor]) -> None:
        """Compute `rows @ P` of many small rows, each `[M, D]`, by one product; `of_weight` has their parts until `end_forward`.

        One by one they keep a GPU waiting. Without gradients nothing happens: such a forward may come between another one and its
        backward pass, in which gradient checkpointing reads the parts of that other one again.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            products = self.apply(torch.cat([rows.flatten(1) for rows in every])).split([len(rows) for rows in every])
            applied = (_Applied(rows, rows._version, part.view_as(rows)) for rows, part in zip(every, products, strict=True))
            self._together, self._is_forward = {id(each.rows): each for each in applied}, True

    def end_forward(self) -> None:
        """From now on `of_weight` computes each by itself, but in backward passes."""
        self._is_forward = False

    def of_weight(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows @ P` as a layer uses it in a forward: its part, or by itself."""
        found = self._together.get(id(rows))
        is_current = found is not None and found.rows is rows and found.version == rows._version and torch.is_grad_enabled()
        if found is not None and is_current and (self._is_forward or _is_backward()):
            return found.product
        return self.apply(rows, in_bfloat16=_is_rounded_next(rows))

    def apply(self, rows: torch.Tensor, *, in_bfloat16: bool = False) -> torch.Tensor:
        """`rows @ P` for `[M, D]`, in float32, or in float64 for rows of float64. Differentiable. Cost: 4 M D F operations.

        The weight of a 1x1 convolution, `[M, D, 1, 1]`, keeps its shape. Autocast and TF32 are off, whatever the program uses:
        their rounding leads out of the null space. `in_bfloat16` rounds what is multiplied, in the gradient too, but not what is
        subtracted or added.
        """
        rows = _at_least_float32(rows)
        key = rows.device, torch.bfloat16 if in_bfloat16 else rows.dtype
        if key not in self._factors:
            self._factors[key] = self._host.to(*key)
        with torch.autocast(rows.device.type, enabled=False), full_float32(rows.device):
            flat = rows.flatten(1)
            made = apply_factor(flat, self._factors[key], is_complement=self._is_complement, multiplied=flat.to(key[1]))
            return made.to(rows.dtype).view_as(rows)

    def share_outside(self, rows: torch.Tensor, *, compared_with: torch.Tensor) -> float:
        """norm(rows - rows P) / norm(compared_with); 0 if nothing of the rows lies outside the null space."""
        outside = float(torch.linalg.norm(rows - self.apply(rows)))
        return outside / float(torch.linalg.norm(compared_with)) if outside else 0.0


def _is_backward() -> bool:
    """Whether autograd runs a backward pass in this thread, in which gradient checkpointing repeats parts of the forward."""
    return torch._C._current_graph_task_id() != -1


def _is_rounded_next(change: torch.Tensor) -> bool:
    """Whether a forward on CUDA is under autocast, which rounds the whole weight, start included, as soon as it is used.

    That moves it further out of the null space than products in bfloat16 do. In float32 these would take half as long again as
    the whole step of a large model (docs/benchmarks.md).
    """
    if not change.is_cuda or change.dtype == torch.float64 or not torch.is_autocast_enabled("cuda"):
        return False
    is_quick: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return is_quick


def exact() -> torch.autocast:
    """Context manager: constrained weights that are read within are exact, whatever autocast surrounds it."""
    return torch.autocast("cuda", enabled=False)


class ProjectedWeight(nn.Module):
    """The parametrization weight = start + X P. A start of None is zero: weight = X P."""

    def __init__(self, projector: TorchProjector, start: torch.Tensor | None) -> None:
        super().__init__()
        self.projector, self.start = projector, start

    def _start(self, device: torch.device) -> torch.Tensor | float:
        if self.start is None:
            return 0.0
        self.start = self.start.to(device)
        return _at_least_float32(self.start)

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        """start + X P from X, both `[M, D]` or `[M, D, 1, 1]`."""
        applied = self.projector.of_weight(change)
        return (applied if self.start is None else self._start(change.device) + applied).to(change.dtype)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """X of a weight, both of its shape; torch calls it when the parametrization is registered."""
        return (_at_least_float32(weight) - self._start(weight.device)).to(weight.dtype)

    def change_to(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """X of a weight from a file. A file lacks the part of X outside the null space, which never had an effect.

        Raises ModelError for a weight that start + X P cannot reach: it was not trained under this constraint.
        """
        weight = _at_least_float32(weight)
        change = weight - self._start(weight.device)
        outside = self.projector.share_outside(change, compared_with=weight)
        if outside > TOLERANCE:
            raise ModelError(
                f"{name} was not trained under this constraint: {outside:.2g} of its norm lies outside the null space",
                "load a file that was saved under the same store, or start from the model that was collected from",
            )
        return change


def constrain_weight(linear: nn.Module, projector: TorchProjector, *, keep_value: bool) -> Callable[[], None]:
    """Replace `linear.weight` by start + X P: start is its value now and X starts at zero. Without `keep_value`, by X P.

    Returns a function that makes it a plain weight again, with the value that it then has. Memory: one more weight with
    `keep_value`, and the factor of P, once. Cost of each use: 4 M D F operations for `[M, D]`.
    """
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]  # to torch it may be a module
    # The parameter gets another storage below, so this tensor stays as it is.
    projected = ProjectedWeight(projector, weight.detach() if keep_value else None)
    parametrize.register_parametrization(linear, "weight", projected)
    hooks = linear.register_state_dict_post_hook(_save_plain_weight), linear.register_load_state_dict_pre_hook(_load_plain_weight)

    def release() -> None:
        for hook in hooks:
            hook.remove()
        with exact():
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)

    return release


def is_constrained(module: nn.Module) -> bool:
    """Whether the weight of a module is parametrized, here or by another library."""
    return parametrize.is_parametrized(module, "weight")


def holds_constraint(module: nn.Module) -> bool:
    """Whether the weight of a module is start + X P, and nothing else was put on top."""
    if not is_constrained(module):
        return False
    found = [*module.get_submodule("parametrizations.weight").children()]
    return len(found) == 1 and isinstance(found[0], ProjectedWeight)


def saved_name(name: str) -> str:
    """The name that a parameter has in the state dict: `weight`, where the weight is constrained."""
    return name.replace(ORIGINAL, "weight")


def trained_parameter(linear: nn.Module) -> nn.Parameter:
    """The parameter of a layer that trains: X if its weight is constrained, else the weight."""
    return linear.get_parameter(ORIGINAL if is_constrained(linear) else "weight")


def initial_weight(linear: Any) -> torch.Tensor | None:
    """The weight that training started from, as `constrain_weight` kept it; None where it kept none."""
    first = linear.parametrizations.weight[0] if is_constrained(linear) else None
    return first.start if isinstance(first, ProjectedWeight) else None


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32; one of float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _save_plain_weight(linear: Any, state: dict[str, torch.Tensor], prefix: str, _: object) -> None:
    del state[f"{prefix}{ORIGINAL}"]
    with exact():
        state[f"{prefix}weight"] = linear.weight.detach()


def _load_plain_weight(linear: Any, state: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
    weight = state.pop(f"{prefix}weight", None)
    if weight is not None:
        projected: ProjectedWeight = linear.parametrizations.weight[0]
        state[f"{prefix}{ORIGINAL}"] = projected.change_to(weight.to(trained_parameter(linear).device), f"{prefix}weight")
