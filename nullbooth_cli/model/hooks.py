"""Hooks on projections: they record the tensors that enter or leave them, and find the projections that share a tensor.

1. `ProjectionHooks` hands over the tensor of every projection in every forward, as tokens `[rows, L, D]`. A hook that does not
   fire exactly once per forward is an error.
2. `group_shared()` compares forwards and finds the projections that always receive the same tensor.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nullbooth_cli.errors import ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.projections import Projection


class StopDenoising(Exception):
    """Ends a denoising path early, from inside a hook."""


Receive = Callable[[Projection, int, torch.Tensor], None]  # (projection, number of the forward, tensor)


class ProjectionHooks:
    """Context manager: calls `receive(projection, forward, tensor)` for every projection in every forward of the denoiser.

    `side` is "input" or "output". `forward` counts from 0; `begin` gets the keyword arguments of each forward before it runs.
    Once all projections have fired in forward `last`, the rest of the model is not computed: `StopDenoising` is raised, which
    ends the block without an error and sets `ended`. Tensors are the model's own memory as `tokens_of` reads it: copy what you
    store. Raises ModelError if a projection does not fire exactly once in a forward.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        projections: tuple[Projection, ...],
        side: str,
        receive: Receive,
        *,
        last: int | None = None,
        begin: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._denoiser, self._projections, self._side = denoiser, projections, side
        self._receive, self._last, self._begin = receive, last, begin
        self.ended = False
        self._handles: list[RemovableHandle] = []
        self._fired: Counter[Projection] = Counter()
        self._forward = 0

    def __enter__(self) -> Self:
        self._handles = [
            *map(self._hook, self._projections),
            self._denoiser.register_forward_pre_hook(self._start_forward, with_kwargs=True),
            self._denoiser.register_forward_hook(lambda *_: self._end_forward()),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for handle in self._handles:
            handle.remove()
        self.ended = kind is StopDenoising
        return self.ended

    def _hook(self, projection: Projection) -> RemovableHandle:
        def fire(tensor: torch.Tensor) -> None:
            self._fired[projection] += 1
            self._receive(projection, self._forward, tokens_of(projection, tensor))
            if self._forward == self._last and len(self._fired) == len(self._projections):
                raise StopDenoising

        if self._side == "input":
            return projection.module.register_forward_pre_hook(lambda _, inputs: fire(inputs[0]))
        return projection.module.register_forward_hook(lambda _, __, output: fire(output))

    def _start_forward(self, _: nn.Module, __: object, arguments: dict[str, Any]) -> None:
        self._fired.clear()
        if self._begin:
            self._begin(arguments)

    def _end_forward(self) -> None:
        wrong = [f"{p} {self._fired[p]} times" for p in self._projections if self._fired[p] != 1]
        if wrong:
            raise ModelError(
                f"in forward {self._forward} these projections did not fire exactly once: {listed(wrong)}",
                "load the model without compiled, fused or custom attention processors",
            )
        self._forward += 1


def tokens_of(projection: Projection, tensor: torch.Tensor) -> torch.Tensor:
    """What a projection receives or returns as tokens `[rows, L, D]`, a view where the memory allows one.

    The tokens of a convolution `[rows, D, h, w]` are its pixels, and `[rows, D]`, as the timestep's embedding, is one token.
    Raises ModelError for any other shape.
    """
    if projection.is_convolution and tensor.dim() == 4:
        return tensor.flatten(2).transpose(1, 2)
    if tensor.dim() == 2:
        return tensor[:, None]
    if tensor.dim() > 3 and not projection.is_convolution:
        return tensor.flatten(1, -2)
    if tensor.dim() != 3:
        raise ModelError(
            f"{projection} has a tensor of shape {list(tensor.shape)}, which are no tokens of rows",
            "leave it out of collect.linear_layers",
        )
    return tensor


@dataclass(frozen=True)
class SharedInput:
    """Projections that always receive one and the same tensor, in firing order; `example` is that tensor, `[rows, L, D]`."""

    projections: tuple[Projection, ...]
    timestep_free: bool
    example: torch.Tensor


def equal_in_all(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a projection received equal values in every forward. One forward alone cannot show it: False."""
    return len(tensors) > 1 and all(torch.equal(tensors[0], later) for later in tensors[1:])


def group_shared(
    forwards: list[list[tuple[Projection, torch.Tensor]]],
    is_timestep_free: Callable[[Sequence[torch.Tensor]], bool] = equal_in_all,
) -> tuple[SharedInput, ...]:
    """Group the projections that shared one tensor in every forward; `forwards` has one list each, in firing order.

    Sharing means the same memory, so the tensors of a forward must all be alive. `is_timestep_free` judges the tensors that a
    projection received, one a forward.
    """
    groups: dict[tuple[object, ...], list[Projection]] = {}
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


def memory_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory read in the same way; also on the meta device, where every address is 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
