"""Decomposing the pooled moments of a full Stable Diffusion 1.5, beside bare torch.linalg.eigh calls on the same matrices.

Ours is stage project: it reads and pools the moments, checks them, decomposes, measures the noise floor, stores eigenvalues
and eigenvectors durably, and cuts. `cut again` is the same loop with another threshold, on the stored decompositions.
`--steps 30 --scope timestep` decomposes one matrix a timestep. `--sign` compares, on the same device, P from eigh with P from
products alone (Newton-Schulz iteration of the matrix sign; Higham, Functions of Matrices, 2008, equation 5.22). `--bare 30` does
that alone, on 30 times those matrices, each made on the device when it is decomposed.
"""

import argparse
from collections.abc import Callable

import torch

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.nullspace.decompose import ProjectUnit, project
from nullbooth_cli.nullspace.pooling import DecompositionSettings, Pooling, second_moment
from nullbooth_cli.store import Store
from nullbooth_cli.store.layout import covariance_units
from tests.benchmarks.common import Stopwatch, figure, in_turns, median_wall, parse, parser, show, workplace
from tests.benchmarks.subjects import random_subject

DIMS = [320] * 10 + [640] * 10 + [1280] * 12 + [768]
SMALL = [32] * 4 + [48]
TARGET = 1.15
RULE, VALUE, OTHER = "relative_threshold", 0.3, 0.5


def filled(store: Store, device: torch.device) -> list[torch.Tensor]:
    """Give every site and timestep the moment of vectors that fall off; returns the moments."""
    made = []
    generator = torch.Generator().manual_seed(0)
    store.moments.create(store.sites, store.num_steps, store.layout)
    units = covariance_units(store.sites, store.num_steps, store.layout)
    for site, block in units:
        sums = []
        for _ in block:
            x = falling(site.dim, generator)
            sums.append(Sums((x.T @ x).numpy(), x.sum(0).numpy(), len(x)))
        store.moments.write(site, block, sums)
        made += [torch.from_numpy(second_moment(of_step)).to(device) for of_step in sums]
    store.progress.commit("covariance", range(len(units)))
    return made


def falling(dim: int, generator: torch.Generator) -> torch.Tensor:
    """D + 10 normal vectors whose coordinates fall off, `[D + 10, D]`."""
    made = {"dtype": torch.float64, "device": generator.device}
    return torch.randn(dim + 10, dim, generator=generator, **made) * torch.logspace(0, -2, dim, **made)


def bare_alone(arguments: argparse.Namespace, device: torch.device) -> None:
    """P by eigh and by the matrix sign on `--bare` times all matrices; a matrix is made outside of the watch."""
    ways: dict[str, Callable[..., list[torch.Tensor]]] = {"P by eigh": from_eigh, "P by sign": from_sign}
    watches, largest = {name: list[Stopwatch]() for name in ways}, 0.0
    generator = torch.Generator(device).manual_seed(0)
    dims = sorted((SMALL if arguments.small else DIMS) * arguments.bare)
    for dim in dims:
        x = falling(dim, generator)
        matrix = x.T @ x / len(x)
        threshold = VALUE * torch.linalg.eigvalsh(matrix)[-1]
        _wait(device)
        found = []
        for name, way in ways.items():
            watches[name].append(Stopwatch())
            found += way(watches[name][-1], [matrix], [threshold])
        largest = max(largest, float((found[0] - found[1]).abs().max()))
    seconds = {name: sum(watch.wall for watch in of_way) for name, of_way in watches.items()}
    figures = [figure(f"a matrix of {len(dims)}: P by sign over P by eigh", watches["P by sign"], watches["P by eigh"])]
    show("decompositions", figures, arguments, seconds=seconds, largest_difference=largest)


def bare(watch: Stopwatch, matrices: list[torch.Tensor]) -> None:
    with watch:
        for matrix in matrices:
            torch.linalg.eigh(matrix)
        _wait(matrices[0].device)


def decomposed(
    watch: Stopwatch, store: Store, settings: DecompositionSettings, device: torch.device, value: float, *, again: bool = False
) -> None:
    units = [ProjectUnit(i, *unit) for i, unit in enumerate(settings.pooling.units(store.sites, settings.steps))]
    if not again:
        counts = {site.name: len(settings.pooling.groups(site, settings.steps)) for site in store.sites}
        store.projectors.create(store.sites, counts)
    store.progress.create("project", len(units))
    with watch:
        for _ in project(store, device, settings, units, rule=RULE, value=value):
            pass


def from_eigh(watch: Stopwatch, matrices: list[torch.Tensor], thresholds: list[torch.Tensor]) -> list[torch.Tensor]:
    found = []
    with watch:
        for matrix, threshold in zip(matrices, thresholds, strict=True):
            values, vectors = torch.linalg.eigh(matrix)
            null = vectors[:, values < threshold]
            found.append(null @ null.T)
        _wait(matrices[0].device)
    return found


def from_sign(
    watch: Stopwatch, matrices: list[torch.Tensor], thresholds: list[torch.Tensor], rounds: int = 60
) -> list[torch.Tensor]:
    """P = (I - sign(C - threshold I)) / 2, X <- X (3 I - X X) / 2 from X = (C - threshold I) / norm."""
    found = []
    with watch:
        for matrix, threshold in zip(matrices, thresholds, strict=True):
            one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
            x = matrix - threshold * one
            x = x / torch.linalg.matrix_norm(x, 1)
            for _ in range(rounds):
                square = x @ x
                x = 1.5 * x - 0.5 * (x @ square)
                if torch.linalg.matrix_norm(square - one) < 1e-12 * len(matrix):
                    break
            found.append((one - x) / 2)
        _wait(matrices[0].device)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--device", default="cpu")
    made.add_argument("--steps", type=int, default=1)
    made.add_argument("--scope", choices=["pooled", "timestep"], default="pooled")
    made.add_argument("--small", action="store_true", help="tiny matrices, to see that it runs")
    made.add_argument("--sign", action="store_true")
    made.add_argument("--bare", type=int, default=0, help="number of times that all matrices are decomposed, without a store")
    arguments = parse(made)
    device = torch.device(arguments.device)
    if arguments.bare:
        return bare_alone(arguments, device)
    of, _ = random_subject(
        [(1, d) for d in (SMALL if arguments.small else DIMS)], num_steps=max(2, arguments.steps), batch_size=1, num_units=1
    )
    details = {}
    with workplace(arguments) as folder:
        store = of.new_store(folder / "run.zarr", "features")
        store.write_schedule(of.path.steps[: arguments.steps])
        matrices = filled(store, device)
        settings = DecompositionSettings(Pooling(arguments.scope), store.schedule())
        if arguments.scope == "pooled":
            matrices = [torch.stack(matrices[i : i + arguments.steps]).mean(0) for i in range(0, len(matrices), arguments.steps)]
        runs = {
            "bare": lambda watch: bare(watch, matrices),
            "ours": lambda watch: decomposed(watch, store, settings, device, VALUE),
            "cut again": lambda watch: decomposed(watch, store, settings, device, OTHER, again=True),
        }
        if arguments.sign:
            thresholds = [VALUE * torch.linalg.eigvalsh(m)[-1] for m in matrices]
            runs["P by eigh"] = lambda watch: from_eigh(watch, matrices, thresholds)
            runs["P by sign"] = lambda watch: from_sign(watch, matrices, thresholds)
            pairs = zip(from_eigh(Stopwatch(), matrices, thresholds), from_sign(Stopwatch(), matrices, thresholds), strict=True)
            details["largest difference of P"] = max(float((a - b).abs().max()) for a, b in pairs)
        times = in_turns(runs, arguments.repeats)
    walls = {name: median_wall(watches) for name, watches in times.items()}
    rest = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in walls.items())
    figures = [
        figure(f"{len(matrices)} matrices over bare eigh", times["ours"], times["bare"], floor=1.0, at_most=TARGET, rest=rest)
    ]
    show("decompositions", figures, arguments, seconds=walls, details=details)


if __name__ == "__main__":
    main()
