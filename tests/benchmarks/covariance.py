"""Stage covariance beside a bare loop that reads the same chunk files and multiplies them in float64, one after the other.

Ours also checks every chunk, writes the moments durably and marks them. Speed is the bare loop's time over ours.
The toy's features are one real unit, repeated; the other shapes are those of Stable Diffusion 1.5 and SDXL, filled with normal
numbers.
"""

import os

import numpy as np
import torch

from nullbooth_cli.nullspace.covariance import CovarianceUnit, covariance
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.store import Store
from nullbooth_cli.store.chunks import TAIL_BYTES
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
from tests.benchmarks.subjects import Subject, multiply_operations, random_subject, store_features, subject, toy_pipeline

SITES = {
    "sd15": [(64, 320), (64, 640), (64, 1280), (4096, 320)],
    "sdxl": [(64, 640), (64, 1280), (154, 2048), (4096, 640)],
}
TARGET = 0.7


def bare(watch: Stopwatch, store: Store, of: Subject) -> None:
    with watch:
        for site in of.found.sites:
            for number, block in enumerate(store.blocks(site)):
                totals = torch.zeros(len(block), site.dim, site.dim, dtype=torch.float64)
                for unit in range(of.num_units):
                    file = store.path / f"features/{site.name}/c.{number}.{unit}.0.0"
                    values = np.fromfile(file, np.uint8)[:-TAIL_BYTES].view(np.float16)
                    chunk = torch.from_numpy(values.reshape(len(store.blocks(site)[0]), -1, site.dim)[: len(block)])
                    for total, of_step in zip(totals, chunk, strict=True):
                        x = of_step.double()
                        total.addmm_(x.T, x)


def reduced(watch: Stopwatch, store: Store, of: Subject, device: torch.device | str = "cpu") -> None:
    """One run of stage covariance's loop, over all units."""
    store.moments.create(of.found.sites, of.num_steps, store.layout)
    os.sync()
    every = [CovarianceUnit(i, *unit) for i, unit in enumerate(covariance_units(of.found.sites, of.num_steps, store.layout))]
    with watch:
        for _ in covariance(store, torch.device(device), "float64", every):
            pass


def main() -> None:
    made = parser(__doc__, repeats=7)
    made.add_argument("--features", nargs="+", choices=["toy", *SITES], default=["toy", "sd15"])
    made.add_argument("--units", type=int, default=10, help="batches")
    made.add_argument("--batch", type=int, help="prompts a batch: 24 for toy, 8 for others")
    made.add_argument("--steps", type=int, help="timesteps: 30 for toy, 2 for others")
    arguments = parse(made)
    figures, details = [], {}
    for name in arguments.features:
        size = {
            "num_steps": arguments.steps or (30 if name == "toy" else 2),
            "batch_size": arguments.batch or (24 if name == "toy" else 8),
            "num_units": arguments.units,
        }
        if name == "toy":
            of = subject(toy_pipeline(), **size)
            recorded = of.record()
        else:
            of, recorded = random_subject(SITES[name], **size)
        with workplace(arguments) as folder:
            store = of.new_store(folder / "run.zarr", "features")
            store_features(store, of, recorded)
            runs = {"bare": lambda w, s=store, o=of: bare(w, s, o), "ours": lambda w, s=store, o=of: reduced(w, s, o)}
            for warm_up in runs.values():
                warm_up(Stopwatch())
            times = in_turns(runs, arguments.repeats)
            rate, (written, read) = multiply_rate(), disk_rates(folder)
            nbytes = store.nbytes("features")
        base, total = median_wall(times["bare"]), median_wall(times["ours"])
        at_floor = {
            "multiply": multiply_operations(of.found.sites, of.num_steps, len(of.prompts)) / rate,
            "read": nbytes / read,
            "write": sums_nbytes(of.found.sites, of.num_steps) / written,
        }
        rest = f"seconds: bare {base:.2f}, ours {total:.2f}; at the floor " + ", ".join(
            f"{what} {seconds:.2f}" for what, seconds in at_floor.items()
        )
        floor = base / sum(at_floor.values())
        figures.append(figure(f"covariance speed, {name}", times["bare"], times["ours"], floor=floor, at_least=TARGET, rest=rest))
        details[name] = {"bare_seconds": base, "seconds": total, "bytes": nbytes, "at_floor": at_floor}
    show("covariance", figures, arguments, multiply_rate=rate, write_rate=written, read_rate=read, details=details)


if __name__ == "__main__":
    main()
