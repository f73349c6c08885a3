"""Summing the vectors of a wide site and decomposing the sum: as a whole moment, and as a factor.

One timestep of each width, vectors whose energies fall off as 1 / i^2, 1,024 at a time. `--whole` is the widest moment that is
decomposed whole: 9 D^3 operations take many minutes at 15,360.
"""

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.decompose_factor import decompose_factor
from nullbooth_cli.nullspace.moments import Summing, summing
from nullbooth_cli.nullspace.pooling import moment_of, second_moment
from tests.benchmarks.common import Figure, Stopwatch, figure, in_turns, median_wall, parse, parser, show

UNIT = 1024


def timed(run: Callable[[], object]) -> Callable[[Stopwatch], None]:
    def watched(watch: Stopwatch) -> None:
        with watch:
            run()

    return watched


def add_up(x: torch.Tensor, rows: int, made: dict[int, Summing]) -> None:
    """Sum vectors `[1, N, D]` and leave what summed them in `made`."""
    made[rows] = summing(1, x.shape[2], rows)
    for unit in x.split(UNIT, dim=1):
        made[rows].update(unit)


def measure(x: torch.Tensor, rank: int, *, decompose_whole: bool, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    dim, made = x.shape[2], dict[int, Summing]()
    summed = in_turns({name: timed(partial(add_up, x, rows, made)) for name, rows in (("factor", rank), ("whole", dim))}, repeats)
    factor = made[rank].sums()[0]
    moment = moment_of(factor)
    runs: dict[str, Callable[[], object]] = {"factor": partial(decompose_factor, moment, None, "cpu", "float64")}
    if decompose_whole:
        whole = made[dim].sums()[0]
        assert isinstance(whole, Sums)
        runs["whole"] = partial(eigh, [second_moment(whole)])
    made.clear()
    decomposed = in_turns({name: timed(run) for name, run in runs.items()}, repeats)
    figures = [
        figure(f"{dim}: {name}, factor over whole", times["factor"], times["whole"])
        for name, times in (("summing", summed), ("decomposing", decomposed))
        if "whole" in times
    ]
    return figures, {
        "bytes of the moment": {"factor": factor.nbytes, "whole": 8 * dim**2},
        "share of the trace that the factor lacks": moment.missing / moment.trace,
        "bound over the largest eigenvalue": moment.bound / float(np.linalg.norm(moment.kept, 2)) ** 2,
        "seconds to sum": {name: median_wall(watches) for name, watches in summed.items()},
        "seconds to decompose": {name: median_wall(watches) for name, watches in decomposed.items()},
    }


def main() -> None:
    made = parser(__doc__, repeats=1)
    made.add_argument("--dims", type=int, nargs="+", default=[5120, 15360])
    made.add_argument("--rank", type=int, default=512)
    made.add_argument("--vectors", type=int, default=4096)
    made.add_argument("--whole", type=int, default=5120)
    arguments = parse(made)
    figures, details = list[Figure](), dict[str, Any]()
    for dim in arguments.dims:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, arguments.vectors, dim, generator=generator) / torch.arange(1, dim + 1)
        found, details[str(dim)] = measure(x, arguments.rank, decompose_whole=dim <= arguments.whole, repeats=arguments.repeats)
        figures += found
    details["largest resident bytes of the process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    show("factors", figures, arguments, details=details)


if __name__ == "__main__":
    main()
