"""Writing and reading whole chunks: ours (store/chunks.py) beside Zarr's own API, on the same arrays.

`durable` is Zarr's API over our storage, which flushes every file as we do; `plain` is Zarr's LocalStore, which does not.
Writes replace chunks that are there; reads come from the system's cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tests.benchmarks.common import Figure, Stopwatch, disk_rates, figure, in_turns, median_wall, parse, parser, show, workplace
from tests.benchmarks.subjects import random_subject

SHAPES = {"70 kB": (96, 364), "10 MB": (4096, 1280)}  # tokens, dim of one prompt in float16
RIVALS = {"write": ("durable", "plain"), "read": ("plain",)}


def runs_of(place: Path, shape: tuple[int, int], count: int) -> dict[str, Callable[[Stopwatch], None]]:
    """Write and read `count` chunks, each way."""
    of, recorded = random_subject([shape], num_steps=2, batch_size=1, num_units=count)
    site, _, tensor = recorded[0]
    store = of.new_store(place, "features")
    name, block = f"features/{site.name}", store.blocks(site)[0]
    values = np.stack([tensor.numpy()] * len(block))
    plain: Any = zarr.open_group(str(place), mode="r+", use_consolidated=False)[name]
    durable = store.arrays.array(name)

    def write_ours(unit: int) -> None:
        store.features.write(site, block, [unit], values)

    def through(array: Any) -> Callable[[int], None]:
        def write(unit: int) -> None:
            array[: len(block), unit : unit + 1] = values

        return write

    def each(act: Callable[[int], object]) -> Callable[[Stopwatch], None]:
        def run(watch: Stopwatch) -> None:
            with watch:
                for unit in range(count):
                    act(unit)

        return run

    return {
        "ours, write": each(write_ours),
        "durable, write": each(through(durable)),
        "plain, write": each(through(plain)),
        "ours, read": each(lambda unit: store.features.read(site, block, unit)),
        "plain, read": each(lambda unit: plain[: len(block), unit]),
    }


def main() -> None:
    made = parser(__doc__, repeats=7)
    made.add_argument("--megabytes", type=int, default=100, help="bytes a run, of each size of chunk")
    arguments = parse(made)
    figures: list[Figure] = []
    with workplace(arguments) as folder:
        written, read = disk_rates(folder)
        for size, shape in SHAPES.items():
            nbytes = 2 * shape[0] * shape[1]
            count = max(2, arguments.megabytes * 1_000_000 // nbytes)
            runs = runs_of(folder / size.replace(" ", ""), shape, count)
            for warm_up in runs.values():
                warm_up(Stopwatch())
            times = in_turns(runs, arguments.repeats)
            for what, rivals in RIVALS.items():
                floor = nbytes / {"write": written, "read": read}[what]
                for rival in rivals:
                    theirs, ours = times[f"{rival}, {what}"], times[f"ours, {what}"]
                    other, own = (median_wall(watches) / count for watches in (theirs, ours))
                    rest = (
                        f"milliseconds a chunk: Zarr {1e3 * other:.3f}, ours {1e3 * own:.3f}, the bytes alone {1e3 * floor:.3f}"
                    )
                    figures.append(
                        figure(f"Zarr ({rival}) over ours, {what} {size}", theirs, ours, floor=other / floor, rest=rest)
                    )
    show("chunks", figures, arguments, write_rate=written, read_rate=read)


if __name__ == "__main__":
    main()
