"""Tensors: copies to the store and back, exact float32 products, noise generators, digests."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """A CPU generator for each seed, so that every device gets the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def keep_freed_memory() -> None:
    """Let glibc keep up to 62 MiB of freed memory for the next tensor, instead of giving it back to the system at once.

    glibc does so after a large block is freed. Before, a tensor may cost a page fault for every 4 kB: 140,000 took 0.3 s of a
    unit of the toy that ran for 1.7 s. Other libraries of C are not changed. Cost: none, the block is never touched.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")  # of more than 32 MiB glibc learns nothing


def pack(tensor: torch.Tensor, dtype: str) -> Callable[[], NDArray[Any]]:
    """Start copying a tensor to host memory in a stored dtype; the function that comes back waits for it.

    bfloat16 becomes its uint16 bits.
    """
    return to_host(tensor.to(getattr(torch, dtype), copy=True))


def to_host(stored: torch.Tensor) -> Callable[[], NDArray[Any]]:
    """Start copying a tensor to host memory; the function that comes back waits for it.

    On the CPU it is not copied: do not change it meanwhile. On CUDA the copy goes to pinned memory on a stream of its own, beside
    the model's work. bfloat16 becomes its uint16 bits.
    """
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


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Let products of float32 matrices on a device keep all their digits: no TF32, whatever the program has allowed.

    Only CUDA has TF32; on other devices nothing is set. CUDA's switch is one of the whole process: while any thread is in here,
    products of other threads are exact too, and the last one to leave puts the program's setting back.
    """
    return _without_tf32() if device.type == "cuda" else nullcontext()


_tf32_lock = Lock()
_tf32_users = 0
_allow_tf32_again: Callable[[], None] | None = None


@contextmanager
def _without_tf32() -> Iterator[None]:
    global _tf32_users, _allow_tf32_again
    with _tf32_lock:
        # Checked each time: another thread may have allowed TF32 since the first one entered.
        _allow_tf32_again = _forbid_tf32() or _allow_tf32_again
        _tf32_users += 1
    try:
        yield
    finally:
        with _tf32_lock:
            _tf32_users -= 1
            if _tf32_users == 0 and _allow_tf32_again is not None:
                _allow_tf32_again()
                _allow_tf32_again = None


def _forbid_tf32() -> Callable[[], None] | None:
    """Forbid TF32; returns a function that restores the same switch, None if TF32 was not allowed.

    torch has two generations of switches. The older one sets both, and training scripts use it. Once a program has used only the
    newer one (torch 2.9, `fp32_precision`), torch refuses to read the older one.
    """
    matmul = torch.backends.cuda.matmul
    try:
        if not matmul.allow_tf32:
            return None
    except RuntimeError:
        before = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        return lambda: _set_fp32_precision(before)
    try:
        is_medium = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:
        is_medium = False
    matmul.allow_tf32 = False

    def allow() -> None:
        matmul.allow_tf32 = True
        if is_medium:  # allow_tf32 alone sets "high"
            torch.set_float32_matmul_precision("medium")

    return allow


def _set_fp32_precision(value: str) -> None:
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "none"  # as torch.backends.fp32_precision says
    if matmul.fp32_precision != value:
        matmul.fp32_precision = value


def plain_name(name: str) -> str:
    """The name that a weight has in the plain model: without PEFT's layers around it or around the whole model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def tensor_digest(tensor: Any, dtype: str) -> str:
    """SHA-256 of a torch tensor's shape and its values in a dtype, cut to 16 hexadecimal digits."""
    values = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    digest = hashlib.sha256(f"{dtype}:{tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


SAMPLES = 8


def tensor_sample(tensor: Any) -> list[float]:
    """Eight values of a tensor, evenly spaced from its first to its last, to six digits: they tell it again after rounding."""
    values = tensor.detach().flatten()
    places = torch.arange(SAMPLES, device=values.device) * (len(values) - 1) // (SAMPLES - 1)
    return [float(f"{float(value):.6g}") for value in values[places].cpu()]
