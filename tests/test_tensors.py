"""Products keep their digits, and the switches of the program are afterwards as they were."""

import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nullbooth_cli import tensors
from nullbooth_cli.tensors import full_float32

CUDA, CPU = torch.device("cuda"), torch.device("cpu")  # a switch of CUDA can be set where there is no CUDA
matmul = torch.backends.cuda.matmul
has_new_switch = pytest.mark.skipif(not hasattr(matmul, "fp32_precision"), reason="torch before 2.9")


def switches() -> list[Any]:
    """All that torch says about the precision of matrix products; None where it refuses to say."""
    found: list[Any] = []
    for ask in (
        lambda: matmul.allow_tf32,
        torch.get_float32_matmul_precision,
        lambda: getattr(matmul, "fp32_precision", None),
        lambda: getattr(torch.backends, "fp32_precision", None),
    ):
        try:
            found.append(ask())
        except RuntimeError:
            found.append(None)
    return found


def set_old() -> None:
    matmul.allow_tf32 = True


def set_new() -> None:
    matmul.fp32_precision = "tf32"


def set_new_for_all() -> None:
    torch.backends.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def _default_switches() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    if hasattr(matmul, "fp32_precision"):
        torch.backends.fp32_precision = "none"
        matmul.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert not matmul.allow_tf32


@pytest.mark.parametrize(
    "allow",
    [
        lambda: None,
        set_old,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        pytest.param(set_new, marks=has_new_switch),
        pytest.param(set_new_for_all, marks=has_new_switch),
    ],
    ids=["nothing", "allow_tf32", "high", "medium", "fp32_precision", "fp32_precision of all"],
)
def test_tf32_is_forbidden_meanwhile_and_allowed_again_in_the_same_words(allow: Callable[[], None]) -> None:
    allow()
    before = switches()
    with full_float32(CUDA):
        assert not matmul.allow_tf32
        with full_float32(CUDA):
            assert not matmul.allow_tf32
        assert not matmul.allow_tf32
    assert switches() == before


def test_on_a_cpu_nothing_is_touched() -> None:
    set_old()
    with full_float32(CPU):
        assert matmul.allow_tf32


def test_on_a_cpu_no_thread_waits_for_another() -> None:
    with tensors._tf32_lock, full_float32(CPU):
        pass


def test_an_error_leaves_the_switches_of_before() -> None:
    set_old()
    with pytest.raises(ZeroDivisionError), full_float32(CUDA):
        1 / 0  # noqa: B018
    assert matmul.allow_tf32


def test_overlapping_threads_compute_exactly_and_leave_the_switches_of_before() -> None:
    """The thread that comes in second leaves second: the first must not allow TF32 under it."""
    set_old()
    inside, first_left = threading.Event(), threading.Event()
    allowed: list[bool] = []

    def first() -> None:
        with full_float32(CUDA):
            inside.wait(10)
        first_left.set()

    def second() -> None:
        with full_float32(CUDA):
            inside.set()
            first_left.wait(10)
            allowed.append(matmul.allow_tf32)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allowed == [False]
    assert matmul.allow_tf32


def test_many_threads_never_see_it_allowed() -> None:
    set_old()
    allowed = []

    def work() -> None:
        for _ in range(300):
            with full_float32(CUDA):
                allowed.append(matmul.allow_tf32)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(allowed)
    assert matmul.allow_tf32


def test_a_thread_that_comes_in_after_it_was_allowed_again_forbids_it_again() -> None:
    with full_float32(CUDA):
        set_old()
        with full_float32(CUDA):
            assert not matmul.allow_tf32
    assert matmul.allow_tf32


def test_what_the_program_forbids_meanwhile_stays_forbidden() -> None:
    with full_float32(CUDA):
        matmul.allow_tf32 = False
    assert not matmul.allow_tf32


FAULTS = """
import resource, torch
from nullbooth_cli.tensors import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """200 tensors of 256 pages each, four at a time: at most the pages of four are new."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    given_back, kept = map(int, found.split())
    assert given_back > 2_000
    assert kept < 1_500
