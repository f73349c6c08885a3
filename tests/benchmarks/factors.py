"""Summing the vectors of a wide site and decomposing the sum: as a whole moment, and as a factor.

One timestep of each width, vectors whose energies fall off as 1 / i^2. `--whole` is the widest moment that is decomposed whole:
9 D^3 operations are many minutes at 15,360.
"""

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.decompose_factor import decompose_factor
from nullbooth_cli.nullspace.moments import Summing, summing
from nullbooth_cli.nullspace.pooling import moment_of, second_moment
from tests.benchmarks.common import Stopwatch, figure, in_turns, parse, parser, show


def main() -> None:
    made = parser(__doc__, repeats=1)
    made.add_argument("--dims", type=int, nargs="+", default=[5120, 15360])
    made.add_argument("--rank", type=int, default=512)
    made.add_argument("--vectors", type=int, default=4096)
    made.add_argument("--whole", type=int, default=5120)
    arguments = parse(made)
    figures, details = [], dict[str, Any]()
    for dim in arguments.dims:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, arguments.vectors, dim, generator=generator) / torch.arange(1, dim + 1)
        made_of: dict[int, Summing] = {}

        def summed(rows: int, x: torch.Tensor = x, made_of: dict[int, Summing] = made_of) -> Callable[[Stopwatch], None]:
            def run(watch: Stopwatch) -> None:
                made_of[rows] = summing(1, x.shape[2], rows)
                with watch:
                    for unit in x.split(1024, dim=1):
                        made_of[rows].update(unit)

            return run

        times = in_turns({"factor": summed(arguments.rank), "whole": summed(dim)}, arguments.repeats)
        figures.append(figure(f"{dim}: summing, factor over whole", times["factor"], times["whole"]))
        factor, whole = made_of[arguments.rank].sums()[0], made_of.pop(dim).sums()[0]
        moment = moment_of(factor)

        def of_factor(watch: Stopwatch, moment: Any = moment) -> None:
            with watch:
                decompose_factor(moment, None, "cpu", "float64")

        def of_whole(watch: Stopwatch, whole: Any = whole) -> None:
            with watch:
                eigh([second_moment(whole)])

        assert isinstance(whole, Sums)
        details[str(dim)] = {
            "bytes of the moment": {"factor": factor.nbytes, "whole": whole.nbytes},
            "share of the trace that the factor lacks": moment.missing / moment.trace,
            "bound over the largest eigenvalue": moment.bound / float(np.linalg.norm(moment.kept, 2)) ** 2,
            "seconds to sum": {name: watches[-1].wall for name, watches in times.items()},
        }
        runs = {"factor": of_factor, "whole": of_whole} if dim <= arguments.whole else {"factor": of_factor}
        times = in_turns(runs, arguments.repeats)
        details[str(dim)]["seconds to decompose"] = {name: watches[-1].wall for name, watches in times.items()}
        if "whole" in times:
            figures.append(figure(f"{dim}: decomposing, factor over whole", times["factor"], times["whole"]))
    details["largest resident bytes of the process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    show("factors", figures, arguments, details=details)


if __name__ == "__main__":
    main()
