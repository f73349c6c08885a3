"""Storing and reducing what one (prompt, timestep) gives, beside one compressed npz file for each.

The model's own forward is on neither side. Ours: the collect sink, durable chunks, then stage covariance with durable moments, or
the fold alone (`keep: moments`). Theirs: np.savez_compressed of all sites, then np.load and x^T x in float64, kept in memory.
`per projection` archives what a hook on every projection gives: float32, the text once for each of its projections and timesteps.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect.sinks import FeatureSink, MomentSink, features_nbytes
from nullbooth_cli.nullspace.covariance import CovarianceUnit, covariance
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.store.background import Writer
from nullbooth_cli.store.layout import covariance_units
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
from tests.benchmarks.subjects import Recorded, Subject, multiply_operations, random_subject, subject, toy_pipeline

SD15_SITES = [(64, dim) for dim in (320, 640, 1280) for _ in range(10)]
TARGET = 30.0
ARCHIVES = ("npz", "npz, per projection")
Arrays = dict[str, NDArray[Any]]


def of_prompts(recorded: Recorded, of: Subject, *, per_projection: bool) -> Iterator[tuple[str, Arrays]]:
    """(name, arrays) of the archive of each prompt and timestep."""
    for step in range(of.num_steps):
        now = [(site, values) for site, at, values in recorded if at == (0 if site.timestep_free else step)]
        for row in range(of.batch_size):
            if per_projection:
                arrays = {weight: values[row].float().numpy() for site, values in now for weight in site.weights}
            else:
                arrays = {site.name: values[row].numpy() for site, values in now}
            yield f"{row}_{step}", arrays


def archived(watch: Stopwatch, of: Subject, recorded: Recorded, place: Path, *, per_projection: bool) -> None:
    place.mkdir()
    sums: dict[tuple[str, str], list[Any]] = {}
    with watch:
        for unit in range(of.num_units):
            for name, arrays in of_prompts(recorded, of, per_projection=per_projection):
                np.savez_compressed(place / f"{unit}_{name}.npz", **arrays)
        for path in place.iterdir():
            with np.load(path) as archive:
                for name in archive.files:
                    x = archive[name].astype(np.float64)
                    key = (name, path.stem.split("_")[2])
                    total = sums.setdefault(key, [np.zeros((x.shape[1], x.shape[1])), np.zeros(x.shape[1]), 0])
                    total[0] += x.T @ x
                    total[1] += x.sum(0)
                    total[2] += len(x)
    shutil.rmtree(place)


def stored(watch: Stopwatch, of: Subject, recorded: Recorded, place: Path, *, keep: str) -> None:
    store = of.new_store(place, keep)
    store.moments.create(of.found.sites, of.num_steps, store.layout)
    units = [CovarianceUnit(i, *unit) for i, unit in enumerate(covariance_units(of.found.sites, of.num_steps, store.layout))]
    cpu = torch.device("cpu")
    with watch, Writer() as writer:
        sink = (
            FeatureSink(store, writer)
            if keep == "features"
            else MomentSink(store.moments.partial_sums("0"), of.found.sites, of.num_steps, device=cpu, accumulate="float64")
        )
        waiting = []
        for unit in range(of.num_units):
            rows = [row for row, _ in store.members(unit)]
            waiting.append(unit)
            for site, step, values in recorded:
                sink.receive(site, step, rows, values)
            if sink.due() or unit == of.num_units - 1:
                sink.checkpoint(waiting)
                store.progress.commit("collect", waiting)
                waiting = []
        for _ in covariance(store, cpu, "float64", units):
            pass
    shutil.rmtree(place)


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--features", nargs="+", choices=["toy", "sd15"], default=["toy", "sd15"])
    made.add_argument("--batch", type=int, help="prompts: 24 for toy, 16 for sd15")
    made.add_argument("--units", type=int, default=1, help="batches: what is written once for all of them is shared")
    made.add_argument("--archives", nargs="+", choices=ARCHIVES, default=list(ARCHIVES))
    made.add_argument("--steps", type=int, help="timesteps: 30 for toy, 2 for sd15")
    arguments = parse(made)
    figures, details = [], {}
    for name in arguments.features:
        size = {
            "num_steps": arguments.steps or (30 if name == "toy" else 2),
            "batch_size": arguments.batch or (24 if name == "toy" else 16),
            "num_units": arguments.units,
        }
        if name == "toy":
            of = subject(toy_pipeline(), **size)
            recorded = of.record()
        else:
            of, recorded = random_subject(SD15_SITES, **size)
        with workplace(arguments) as folder:
            runs = runs_of(of, recorded, folder)
            for archive in ARCHIVES:
                # No projection of the other shapes shares its tensor.
                if archive not in arguments.archives or (archive != "npz" and name != "toy"):
                    del runs[archive]
            times = in_turns(runs, arguments.repeats)
            rate, (written, read) = multiply_rate(), disk_rates(folder)
        sites, pairs = of.found.sites, of.num_steps * len(of.prompts)
        nbytes = features_nbytes(sites, of.num_steps, len(of.prompts), "float16")
        multiply, write = (
            multiply_operations(sites, of.num_steps, len(of.prompts)) / rate,
            sums_nbytes(sites, of.num_steps) / written,
        )
        least = {"features": multiply + write + nbytes / written + nbytes / read, "moments": multiply + 3 * write}
        for keep, ours in (("features", times["features"]), ("moments", times["moments"])):
            for theirs in [run for run in runs if run.startswith("npz")]:
                total, other = median_wall(ours), median_wall(times[theirs])
                rest = (
                    f"milliseconds a prompt and timestep: npz {1e3 * other / pairs:.2f}, ours {1e3 * total / pairs:.3f}, "
                    f"at the floor {1e3 * least[keep] / pairs:.3f} (multiplying {1e3 * multiply / pairs:.3f})"
                )
                figures.append(
                    figure(
                        f"{name}: {theirs} over ours, keep {keep}",
                        times[theirs],
                        ours,
                        floor=other / least[keep],
                        at_least=TARGET,
                        rest=rest,
                    )
                )
        details[name] = {run: median_wall(watches) for run, watches in times.items()}
    show("archives", figures, arguments, multiply_rate=rate, write_rate=written, read_rate=read, seconds=details)


def runs_of(of: Subject, recorded: Recorded, folder: Path) -> dict[str, Callable[[Stopwatch], None]]:
    return {
        "npz": lambda watch: archived(watch, of, recorded, folder / "npz", per_projection=False),
        "features": lambda watch: stored(watch, of, recorded, folder / "run.zarr", keep="features"),
        "npz, per projection": lambda watch: archived(watch, of, recorded, folder / "npz", per_projection=True),
        "moments": lambda watch: stored(watch, of, recorded, folder / "run.zarr", keep="moments"),
    }


if __name__ == "__main__":
    main()
