"""The whole work on a CUDA device: Stable Diffusion 1.5 or SDXL in full size with random weights, guidance on.

For each precision, over one batch and in turns: the bare loop, collect with its hooks alone, with sums that are never written
(as most units of a long run), and with sums that are (one unit, the worst case). Then one collection of as many prompts as fit
into its share of --minutes, with the device's utilisation and peak memory, then stage covariance over stored features (64 tokens
a prompt). `--device cpu --tiny` runs all of it in seconds, to show that it runs.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.collect.sinks import FeatureSink, MomentSink, Sink
from nullbooth_cli.collect.units import collect_units
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.pipeline.space import place_for_sums
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.store import Store
from nullbooth_cli.store.background import Writer
from tests.benchmarks.collect import Unrecorded, bare
from tests.benchmarks.common import (
    Stopwatch,
    disk_rates,
    figure,
    in_turns,
    median_wall,
    multiply_rate,
    parse,
    parser,
    show,
    workplace,
)
from tests.benchmarks.covariance import reduced
from tests.benchmarks.subjects import PIPELINES, Subject, multiply_operations, subject

TARGET = 1.10


class Unwritten(MomentSink):
    """Sums that never reach a disk."""

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Sequence[int]) -> None:
        pass


class Utilisation:
    """Samples the share of time in which the device computes, in percent, twice a second."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._end, self.samples = device, threading.Event(), []  # type: ignore[var-annotated]
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Utilisation":
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.samples.append(self._now())

    def _now(self) -> float:
        try:
            return float(torch.cuda.utilization(self._device))
        except ModuleNotFoundError:  # torch asks pynvml
            query = [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                f"--id={self._device.index or 0}",
            ]
            return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.samples) if self.samples else None


def summed(kind: type[MomentSink], of: Subject, device: torch.device, arguments: argparse.Namespace, store: Store) -> MomentSink:
    return kind(store.moments.partial_sums("0"), of.found.sites, of.num_steps, device=device, accumulate=arguments.accumulate)


def taken(watch: Stopwatch, of: Subject, place: Path, sink: Callable[[Store], Sink]) -> None:
    """One unit of stage collect; the store is removed afterwards."""
    store = of.new_store(place, "moments")
    made = sink(store)
    with watch, Writer():
        for _ in collect_units(store, of.model, [0], sinks=[made], interrupts=Interrupts()):
            pass
    shutil.rmtree(place)


def collection(of: Subject, place: Path, sink: Callable[[Store], Sink], *, seconds: float, sums: torch.device) -> dict[str, Any]:
    """Collect moments until the seconds are over; at least one unit."""
    store, device = of.new_store(place, "moments"), of.pipe.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start, done = time.perf_counter(), 0
    units = iter(range(of.num_units))
    timely = (unit for unit in units if not unit or time.perf_counter() - start < seconds)
    with Utilisation(device) as used, Writer():
        for _ in collect_units(store, of.model, timely, sinks=[sink(store)], interrupts=Interrupts()):
            done += 1
    elapsed = time.perf_counter() - start
    shutil.rmtree(place)
    prompts = done * of.batch_size
    return {
        "prompts": prompts,
        "seconds": elapsed,
        "seconds_a_prompt": elapsed / prompts,
        "hours_of_1000_prompts": elapsed / prompts / 3.6,
        "sums_on": str(sums),
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "utilisation_percent": used.mean,
    }


def features_reduced(of: Subject, place: Path, device: torch.device) -> dict[str, Any]:
    """Collect the features of one unit, then reduce them."""
    store = of.new_store(place, "features")
    with Writer() as writer:
        for _ in collect_units(store, of.model, [0], sinks=[FeatureSink(store, writer)], interrupts=Interrupts()):
            pass
    watch, nbytes = Stopwatch(), store.nbytes("features")
    reduced(watch, store, of, device)
    shutil.rmtree(place)
    rate = multiply_rate(device)
    multiply = multiply_operations(of.found.sites, of.num_steps, of.batch_size) / rate
    return {"seconds": watch.wall, "bytes": nbytes, "multiply_seconds_at_floor": multiply, "multiply_rate": rate}


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--device", default="cuda")
    made.add_argument("--model", choices=PIPELINES, default="sd15")
    made.add_argument("--accumulate", choices=["float64", "float32"], default="float64")
    made.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    made.add_argument("--minutes", type=float, default=8.0, help="for the collections, all precisions together")
    made.add_argument("--steps", type=int, default=30)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--prompts", type=int, default=1000, help="at most so many")
    made.add_argument("--tiny", action="store_true", help="a tiny model, 2 steps, 4 prompts")
    arguments = parse(made)
    if arguments.tiny:
        arguments.steps, arguments.batch, arguments.prompts, arguments.repeats = 2, 2, 4, 1
    measure(arguments, torch.device(arguments.device))


def measure(arguments: argparse.Namespace, device: torch.device) -> None:
    figures, details = [], {}
    for dtype in arguments.dtypes:
        pipe = PIPELINES[arguments.model](device, getattr(torch, dtype), tiny=arguments.tiny)
        sizes = {"num_steps": arguments.steps, "batch_size": arguments.batch}
        of = subject(pipe, **sizes, num_units=max(1, arguments.prompts // arguments.batch))
        one = subject(pipe, **sizes, num_units=1)
        sums = place_for_sums(one.found.sites, one.num_steps, device)
        with workplace(arguments) as folder:
            runs = {
                "bare": partial(bare, of=one),
                "hooks alone": partial(taken, of=one, place=folder / "run.zarr", sink=lambda _: Unrecorded()),
                "sums, unwritten": partial(
                    taken, of=one, place=folder / "run.zarr", sink=partial(summed, Unwritten, one, sums, arguments)
                ),
                "one unit": partial(
                    taken, of=one, place=folder / "run.zarr", sink=partial(summed, MomentSink, one, sums, arguments)
                ),
            }
            for warm_up in () if arguments.tiny else runs.values():
                warm_up(Stopwatch())
            times = in_turns(runs, arguments.repeats)
            sink = partial(summed, MomentSink, one, sums, arguments)
            whole = collection(of, folder / "run.zarr", sink, seconds=60 * arguments.minutes / len(arguments.dtypes), sums=sums)
            reduction = features_reduced(one.with_tokens(64), folder / "run.zarr", device)
            written, _ = disk_rates(folder)
        base, multiply = median_wall(times["bare"]), multiply_operations(one.found.sites, one.num_steps, one.batch_size)
        whole["over_bare"] = whole["seconds_a_prompt"] * one.batch_size / base
        at_floor = {
            "multiply": multiply / reduction["multiply_rate"],
            "write": sums_nbytes(one.found.sites, one.num_steps) / written,
        }
        rest = ", ".join(
            f"{what} at the floor {100 * seconds / base:.1f} % of the bare loop" for what, seconds in at_floor.items()
        )
        floors = {
            "hooks alone": 1.0,
            "sums, unwritten": 1 + at_floor["multiply"] / base,
            "one unit": 1 + sum(at_floor.values()) / base,
        }
        for name, floor in floors.items():
            goal, said = (TARGET, "") if name == "sums, unwritten" else (None, rest)
            figures.append(figure(f"{name}, {dtype}", times[name], times["bare"], floor=floor, at_most=goal, rest=said))
        details[dtype] = {"bare_seconds": base, "at_floor": at_floor, "collection": whole, "covariance": reduction}
        del pipe, of, one, runs
    show("gpu", figures, arguments, details=details if arguments.json else json.dumps(details, indent=2))


if __name__ == "__main__":
    main()
