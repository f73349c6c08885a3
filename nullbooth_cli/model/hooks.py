"""Watches what enters or leaves projections, and which of them share a tensor.

1. `ProjectionHooks` hooks them and hands over every tensor at once. A hook that does not fire exactly once per forward is an
   error.
2. `group_shared()` compares two forwards and finds the projections that always receive the same tensor.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.projections import Projection


class StopDenoising(Exception):
    """Ends a denoising path early, from inside a hook."""


Receive = Callable[[Projection, int, torch.Tensor], None]


class ProjectionHooks:
    """Context manager: `receive(projection, forward, tensor)` for every watched projection in every forward of the denoiser.

    `forward` counts from 0; `begin` sees the keyword arguments that each forward starts with. Once all have fired in forward
    `last`, the rest of the model is not computed: `StopDenoising` is raised, which ends the block without an error and sets
    `ended`. Tensors are the model's own: copy what you store.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        projections: tuple[Projection, ...],
        side: str,
        receive: Receive,
        last: int | None = None,
        begin: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._denoiser, self._projections, self._side = denoiser, projections, side
        self._receive, self._last, self._begin = receive, last, begin
        self.ended = False
        self._handles: list[Any] = []
        self._fired: Counter[Projection] = Counter()
        self._forward = 0

    def __enter__(self) -> "ProjectionHooks":
        for projection in self._projections:
            self._handles.append(self._hook(projection))
        self._handles.append(self._denoiser.register_forward_pre_hook(self._start, with_kwargs=True))
        self._handles.append(self._denoiser.register_forward_hook(lambda *_: self._finish()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for handle in self._handles:
            handle.remove()
        self.ended = kind is StopDenoising
        return self.ended

    def _hook(self, projection: Projection) -> Any:
        def fire(tensor: torch.Tensor) -> None:
            self._fired[projection] += 1
            self._receive(projection, self._forward, tensor)
            if self._forward == self._last and len(self._fired) == len(self._projections):
                raise StopDenoising

        if self._side == "input":
            return projection.module.register_forward_pre_hook(lambda _, inputs: fire(inputs[0]))
        return projection.module.register_forward_hook(lambda _, __, output: fire(output))

    def _start(self, _: nn.Module, __: Any, arguments: dict[str, Any]) -> None:
        self._fired.clear()
        if self._begin:
            self._begin(arguments)

    def _finish(self) -> None:
        wrong = [f"{p} {self._fired[p]} times" for p in self._projections if self._fired[p] != 1]
        if wrong:
            raise ConfigError(
                f"in forward {self._forward} these projections did not fire exactly once: {', '.join(wrong)}",
                "load the model without compiled, fused or custom attention processors",
            )
        self._forward += 1


@dataclass(frozen=True)
class SharedInput:
    """Projections that always receive one and the same tensor, in firing order; `example` is that tensor, `[rows, L, D]`."""

    projections: tuple[Projection, ...]
    timestep_free: bool
    example: torch.Tensor


def equal_in_all(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a projection got equal values in every forward that was seen, which one forward alone cannot show."""
    return len(tensors) > 1 and all(torch.equal(tensors[0], later) for later in tensors[1:])


def group_shared(
    forwards: list[list[tuple[Projection, torch.Tensor]]],
    is_timestep_free: Callable[[Sequence[torch.Tensor]], bool] = equal_in_all,
) -> tuple[SharedInput, ...]:
    """Group the projections that shared one tensor in every forward that was seen (one list a forward, in firing order).

    Sharing is the same memory, so the tensors of a forward must all be alive. `is_timestep_free` judges what a projection got in
    each forward.
    """
    groups: dict[tuple[Any, ...], list[Projection]] = {}
    seen = [dict(forward) for forward in forwards]
    for projection, _ in forwards[0]:
        groups.setdefault(tuple(memory_of(tensors[projection]) for tensors in seen), []).append(projection)
    return tuple(
        SharedInput(
            tuple(members),
            is_timestep_free([tensors[members[0]] for tensors in seen]),
            seen[0][members[0]],
        )
        for members in groups.values()
    )


def memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory read in the same way; on the meta device, too, where every address is 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
