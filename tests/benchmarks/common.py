"""What the scripts share: timing in turns, the machine's rates, and how figures are shown."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROBE_BYTES = 64 << 20
PACKAGES = ("torch", "diffusers", "transformers", "zarr", "numpy")


class Stopwatch:
    """`with watch:` around what counts; what is prepared before it and tidied after it does not."""

    wall = cpu = 0.0

    def __enter__(self) -> "Stopwatch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


Runs = Mapping[str, Callable[[Stopwatch], None]]
Times = dict[str, list[Stopwatch]]


def in_turns(runs: Runs, repeats: int) -> Times:
    """Time every run once, then all of them again, and so on."""
    times: Times = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            watch = Stopwatch()
            run(watch)
            times[name].append(watch)
            print(f"  turn {turn + 1}/{repeats}: {name} {watch.wall:.2f} s, CPU {watch.cpu:.2f} s", file=sys.stderr)
    return times


def median_wall(watches: list[Stopwatch]) -> float:
    return statistics.median(watch.wall for watch in watches)


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, above: list[Stopwatch], below: list[Stopwatch], clock: str) -> "Spread":
        return cls.of([getattr(a, clock) / max(getattr(b, clock), 1e-9) for a, b in zip(above, below, strict=True)])

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


@dataclass(frozen=True)
class Figure:
    """A ratio of neighbours in turns; `floor` is what it would be at the machine's own rates, `rest` says where time goes."""

    name: str
    wall: Spread
    cpu: Spread
    floor: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    rest: str = ""

    @property
    def met(self) -> bool | None:
        if self.at_most is not None:
            return self.wall.median <= self.at_most
        return None if self.at_least is None else self.wall.median >= self.at_least

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:.2f}"
        return "none" if self.at_least is None else f">= {_short(self.at_least)}"


def figure(name: str, above: list[Stopwatch], below: list[Stopwatch], **more: Any) -> Figure:
    """`above` over `below`, in both clocks."""
    return Figure(name, Spread.of_ratios(above, below, "wall"), Spread.of_ratios(above, below, "cpu"), **more)


def show(benchmark: str, figures: list[Figure], arguments: argparse.Namespace, **more: Any) -> None:
    """A table, or with --json one document."""
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        shown = [{**asdict(f), "target": f.target, "met": f.met} for f in figures]
        print(
            json.dumps({"benchmark": benchmark, "machine": machine(), "settings": settings, "figures": shown, **more}, indent=2)
        )
        return
    rows = [("figure", "wall time", "CPU time", "target", "met", "floor", "the rest")]
    for f in figures:
        met = {True: "yes", False: "no", None: ""}[f.met]
        rows.append((f.name, str(f.wall), str(f.cpu), f.target, met, "" if f.floor is None else _short(f.floor), f.rest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for name, value in more.items():
        print(f"{name}: {value}")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def multiply_rate(device: torch.device | str = "cpu", dim: int = 1024, seconds: float = 0.5) -> float:
    """Float64 operations a second that x^T x reaches, the best of several tries."""
    x, total = (torch.randn(n, dim, dtype=torch.float64, device=device) for n in (4096, dim))
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        total.addmm_(x.T, x)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * len(x) * dim**2 / best


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def disk_rates(folder: Path, tries: int = 3) -> tuple[float, float]:
    """(bytes written and flushed a second, bytes read a second from the system's cache), the best of several tries."""
    data, path = np.random.default_rng(0).bytes(PROBE_BYTES), folder / "probe"
    writes, reads = [], []
    for _ in range(tries):
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        written = time.perf_counter()
        np.fromfile(path, np.uint8)
        writes.append(written - start)
        reads.append(time.perf_counter() - written)
        path.unlink()
    return PROBE_BYTES / min(writes), PROBE_BYTES / min(reads)


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = made.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


@contextmanager
def workplace(arguments: argparse.Namespace) -> Iterator[Path]:
    """A folder that is removed afterwards, on the disk that --folder names."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="benchmark-") as folder:
        yield Path(folder)


def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--repeats", type=int, default=repeats, help="turns")
    made.add_argument("--folder", default=None, help="where to write; a temporary folder by default")
    made.add_argument("--threads", type=int, help="of torch; its own choice by default. 1 is steadier beside other work")
    made.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return made
