"""Tensors on their way to the store and back, how they are multiplied, and what noise is drawn from."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One for each seed; of the CPU, so that every device gets the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def pack(tensor: torch.Tensor, dtype: str) -> Callable[[], NDArray[Any]]:
    """Start copying a tensor to host memory in a stored dtype; the function that comes back waits for it.

    bfloat16 becomes its uint16 bits. On CUDA the copy goes to pinned memory on a stream of its own, beside the model's work.
    """
    stored = tensor.to(getattr(torch, dtype), copy=True)
    if stored.device.type != "cuda":
        return lambda: _bits(stored.cpu())
    host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
    stream = _copy_stream(stored.device)
    stream.wait_stream(torch.cuda.current_stream(stored.device))
    with torch.cuda.stream(stream):
        host.copy_(stored, non_blocking=True)
        stored.record_stream(stream)
        copied = torch.cuda.Event()
        copied.record(stream)

    def wait() -> NDArray[Any]:
        copied.synchronize()
        return _bits(host)

    return wait


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _bits(host: torch.Tensor) -> NDArray[Any]:
    return (host.view(torch.uint16) if host.dtype == torch.bfloat16 else host).numpy()


def unpack(values: NDArray[Any], dtype: str) -> torch.Tensor:
    """The inverse of `pack`."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices keep all their digits on CUDA, too: no TF32, whatever the program has allowed."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def plain_name(name: str) -> str:
    """The name that a weight has in the plain model, where PEFT put adapters around it or around the whole model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def tensor_digest(tensor: Any, dtype: str) -> str:
    """SHA-256 of a torch tensor's shape and its values in a dtype, cut to 16 hexadecimal digits."""
    import torch

    values = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    digest = hashlib.sha256(f"{dtype}:{tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
