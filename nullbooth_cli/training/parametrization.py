"""A weight that can only change within a null space, and whose module still saves and loads as if it were plain.

1. `constrain_weight()` replaces the weight of a linear layer by start + X P. X is trained. It is the layer's own parameter
   object, so an optimizer that was built before still trains it.
2. `state_dict()` of the layer, or of any model around it, has start + X P under `weight`, and `load_state_dict()` takes it
   back: saving, resuming and exchanging a model work with ordinary files.
3. `release()` leaves a plain weight.

What must stay true: neither the start nor the factor of P is a buffer. `.to(float16)` would round them, DistributedDataParallel
would send them round in every step, and each layer would get a factor of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.tensors import full_float32

ORIGINAL = "parametrizations.weight.original"
TOLERANCE = 2.0**-8  # relative: twice what rounding to bfloat16 can move a weight


class NullSpace:
    """A projector for torch: its factor once for each device and dtype, shared by all weights that share an input."""

    def __init__(self, projector: Projector) -> None:
        self.dim, self.null_dim = projector.dim, projector.null_dim
        self._is_complement = projector.is_complement
        self._host = torch.from_numpy(projector.factor)
        self._factors: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows @ P` for `[M, D]`, in float32 or, if rows are, in float64. Differentiable. Cost: 4 M D F operations.

        Without autocast and TF32, whatever the program uses: their rounding leads out of the null space.
        """
        rows = _full(rows)
        key = rows.device, rows.dtype
        if key not in self._factors:
            self._factors[key] = self._host.to(*key)
        factor = self._factors[key]
        with torch.autocast(rows.device.type, enabled=False), full_float32(rows.device):
            part = (rows @ factor) @ factor.T
        return rows - part if self._is_complement else part

    def share_outside(self, rows: torch.Tensor, compared_with: torch.Tensor) -> float:
        """norm(rows - rows P) over the norm of other values; 0 where there is nothing outside."""
        outside = float(torch.linalg.norm(rows - self.project(rows)))
        return outside / float(torch.linalg.norm(compared_with)) if outside else 0.0


class InNullSpace(nn.Module):
    """The parametrization weight = start + X P; without a start, which then is zero, weight = X P."""

    def __init__(self, space: NullSpace, start: torch.Tensor | None) -> None:
        super().__init__()
        self.space, self.start = space, start

    def _start(self, device: torch.device) -> torch.Tensor | float:
        if self.start is None:
            return 0.0
        self.start = self.start.to(device)
        return _full(self.start)

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        return (self._start(change.device) + self.space.project(change)).to(change.dtype)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return (_full(weight) - self._start(weight.device)).to(weight.dtype)

    def change_to(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """X of a weight that was saved. What X had outside the null space acts on nothing, so nothing of it is missed.

        Raises ConfigError for a weight that start + X P cannot reach: it was not trained under this constraint.
        """
        change = _full(weight) - self._start(weight.device)
        outside = self.space.share_outside(change, compared_with=_full(weight))
        if outside > TOLERANCE:
            raise ConfigError(
                f"{name} was not trained under this constraint: {outside:.2g} of its norm lies outside the null space",
                "load what was saved under the same store; begin anything else from the model that was collected from",
            )
        return change


def constrain_weight(linear: nn.Module, space: NullSpace, *, from_here: bool) -> Callable[[], None]:
    """Hold `linear.weight` to start + X P, where start is its value now and X begins at zero, or (not `from_here`) to X P.

    Returns what makes it a plain weight again, with the value that it has then. Memory: one more weight if `from_here`, and the
    factor of P, once. Cost of each use: 4 M D F operations for `[M, D]`.
    """
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]  # to torch it may be a module
    # The parameter is given another storage below, so this one stays as it is.
    held = InNullSpace(space, weight.detach() if from_here else None)
    parametrize.register_parametrization(linear, "weight", held)
    hooks = linear.register_state_dict_post_hook(_save_plain_weight), linear.register_load_state_dict_pre_hook(_load_plain_weight)

    def release() -> None:
        for hook in hooks:
            hook.remove()
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)

    return release


def is_constrained(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight")


def trained_parameter(linear: nn.Module) -> nn.Parameter:
    """What trains of its weight: X where it is held."""
    return linear.get_parameter(ORIGINAL if is_constrained(linear) else "weight")


def initial_weight(linear: Any) -> torch.Tensor:
    """The weight from which a layer started; where it is not held, the weight."""
    start: torch.Tensor = linear.parametrizations.weight[0].start if is_constrained(linear) else linear.weight
    return start


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _save_plain_weight(linear: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    del state[f"{prefix}{ORIGINAL}"]
    state[f"{prefix}weight"] = linear.weight.detach()


def _load_plain_weight(linear: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.pop(f"{prefix}weight", None)
    if weight is not None:
        held = linear.parametrizations.weight[0]
        state[f"{prefix}{ORIGINAL}"] = held.change_to(weight.to(trained_parameter(linear).device), f"{prefix}weight")
