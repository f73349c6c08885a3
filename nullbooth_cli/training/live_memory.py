"""The memory that a forward and backward take, from tensors on the meta device, which have shapes and no values.

1. `Live` counts the bytes of all tensors that exist at a time.
2. `AsOnAccelerator` makes operations on the meta device take the dtypes and keep the tensors that they do on an accelerator:
   autocast of torch leaves the meta device out, and attention is computed there with a matrix of all weights.
3. `of_step()` puts both around a step.

Memory that is taken inside of one operation (the workspace of a convolution), and what an allocator loses between blocks, is not
in the count.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

# Those of torch's autocast on CUDA (docs.pytorch.org/docs/stable/amp.html) that denoisers use.
IN_HALF = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm, torch.einsum),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm),
)
IN_FLOAT = (
    *(F.layer_norm, F.group_norm, F.softmax, F.mse_loss, torch.softmax, torch.Tensor.softmax, torch.exp, torch.rsqrt, torch.pow),
    *(torch.Tensor.exp, torch.Tensor.rsqrt, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.sum, torch.sum),
)


class Live(TorchDispatchMode):
    """Context manager that counts bytes: `now`, those of the tensors that were made in it and exist, and `peak`, the most so far.

    Views share the bytes of their tensor.
    """

    now: int
    peak: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only part of itself
        self.now = self.peak = 0
        self._counted = set[int]()

    def _gone(self, key: int, num_bytes: int) -> None:
        self._counted.discard(key)
        self.now -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                # What was there before Live, such as a weight, is not counted: nor are views of it, nor what is written into it.
                if storage._cdata not in self._counted and not _has(storage, (args, kwargs)):
                    self._counted.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


def _has(storage: torch.UntypedStorage, given: object) -> bool:
    """Whether a tensor in a tree of arguments has this memory."""
    tensors = (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))
    return any(tensor.untyped_storage()._cdata == storage._cdata for tensor in tensors)


class _Attention(torch.autograd.Function):
    """Attention as fused kernels keep it for the backward pass: queries, keys, values, the result, and a number for each row."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(context: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


class AsOnAccelerator(TorchFunctionMode):
    """Context manager: attention is fused, and with a half precision, operations run in the dtypes of autocast."""

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self._half = half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_attention = func is F.scaled_dot_product_attention
        if self._half is not None:
            if is_attention or func in IN_HALF:
                args, kwargs = _cast((args, kwargs), torch.float32, self._half)
            elif func in IN_FLOAT:
                args, kwargs = _cast((args, kwargs), self._half, torch.float32)
        return _attention(*args, **kwargs) if is_attention else func(*args, **kwargs)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> Any:
    return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]  # torch annotates only part of itself


def _cast(given: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Tensors of one dtype in another, in a tree of arguments."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(new) if tensor.dtype == old else tensor, given)


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """`kept`: bytes that a forward leaves for the backward. `peak`: the most at a time in both, beside weights and gradients."""

    kept: int
    peak: int


def of_step(
    denoiser: nn.Module, forward: Callable[[], torch.Tensor], half: torch.dtype | None, *, checkpointing: bool = False
) -> StepMemory:
    """The memory of a forward, which returns a prediction, and its backward; gradients of weights are there already.

    `checkpointing`: with gradient checkpointing, which `denoiser` has from then on. Cost: that of a forward and backward without
    their arithmetic, some seconds.
    """
    if checkpointing:
        recompute = partial(
            checkpoint,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), AsOnAccelerator(half)),  # the backward pass leaves the modes below
        )
        denoiser.enable_gradient_checkpointing(recompute)  # type: ignore[operator]  # torch has no type for what a module adds
    for parameter in denoiser.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with Live() as live, AsOnAccelerator(half):
        loss = forward().float().square().mean()
        kept = live.now
        torch.autograd.backward(loss)  # Tensor.backward would leave Live as well
    return StepMemory(kept=kept, peak=live.peak)


def of_call(call: Callable[[], object], half: torch.dtype | None = None) -> int:
    """The most bytes at a time in a call without gradients, such as a forward that draws a picture."""
    with torch.no_grad(), Live() as live, AsOnAccelerator(half):
        call()
    peak: int = live.peak
    return peak
