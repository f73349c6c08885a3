"""The whole collect loop over the bare pipeline loop: same prompts, noise, batch, schedule and scheduler, in turns.

What is timed of ours: hooks, checks, sinks, checkpoints and commits, on a store on disk; not its creation.
One unit is the worst case for moments: a run of many writes its sums for 5 % of its time at most, one unit always writes them.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.collect.sinks import FeatureSink, MomentSink, Sink, features_nbytes
from nullbooth_cli.collect.units import collect_units
from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.store.background import Writer
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
from tests.benchmarks.subjects import PIPELINES, Subject, multiply_operations, sdxl_pipeline, subject, toy_pipeline

TARGETS = {("toy", "moments"): 1.10, ("sd15", "moments"): 1.05, ("toy", "features"): 1.10, ("sd15", "features"): 1.10}


class Unrecorded:
    """Takes what a unit recorded, and does nothing with it."""

    dtype = None

    def lacks(self, unit: int) -> bool:
        return True

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        pass

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Sequence[int]) -> None:
        pass


class Timed:
    """A sink that notes the seconds spent in it."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self.dtype, self.received, self.written = sink, sink.dtype, 0.0, 0.0

    def lacks(self, unit: int) -> bool:
        return self._sink.lacks(unit)

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        start = time.perf_counter()
        self._sink.receive(site, step, rows, values)
        self.received += time.perf_counter() - start

    def due(self) -> bool:
        return self._sink.due()

    def checkpoint(self, units: Sequence[int]) -> None:
        start = time.perf_counter()
        self._sink.checkpoint(units)
        self.written += time.perf_counter() - start


def bare(watch: Stopwatch, of: Subject) -> None:
    """What a user of the pipeline writes."""
    with watch:
        for first in range(0, len(of.prompts), of.batch_size):
            of.pipe(
                prompt=[prompt.text for prompt in of.prompts[first : first + of.batch_size]],
                num_inference_steps=of.path.num_inference_steps,
                guidance_scale=of.path.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(first + i) for i in range(of.batch_size)],
                output_type="latent",
                height=of.path.height,
                width=of.path.width,
            ).images.cpu()


def collected(watch: Stopwatch, of: Subject, keep: str, place: Path, device: torch.device | str = "cpu") -> Timed:
    """One run of stage collect's loop; the store is removed afterwards."""
    store = of.new_store(place, "moments" if keep == "hooks" else keep)

    def made(writer: Writer) -> Sink:
        if keep == "hooks":
            return Unrecorded()
        if keep == "features":
            return FeatureSink(store, writer)
        part = store.moments.partial_sums("0")
        return MomentSink(part, of.found.sites, of.num_steps, device=torch.device(device), accumulate="float64")

    with watch, Writer() as writer:
        sink = Timed(made(writer))
        for _ in collect_units(store, of.model, range(of.num_units), sinks=[sink], interrupts=Interrupts()):
            pass
    shutil.rmtree(place)
    return sink


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--model", choices=["toy", *PIPELINES], default="toy")
    made.add_argument(
        "--keep", nargs="+", choices=["moments", "features", "hooks"], default=["moments", "features"], help="hooks: nothing"
    )
    made.add_argument(
        "--tokens", nargs="+", type=int, default=[0, 64], help="tokens_per_prompt of each --keep, or of all; 0: all tokens"
    )
    made.add_argument("--steps", type=int, help="denoising steps: 30 for toy, 2 for others")
    made.add_argument("--batch", type=int, help="prompts per forward: 24 for toy, 1 for others")
    made.add_argument("--units", type=int, default=1, help="batches per run")
    made.add_argument("--latents", type=int, help="edge of the latents: 8 for toy, 64 for sd15, 128 for sdxl")
    made.add_argument("--depth", type=int, help="transformer blocks in a row of sdxl, where the whole model does not fit")
    arguments = parse(made)
    toy = arguments.model == "toy"
    tokens = arguments.tokens * len(arguments.keep) if len(arguments.tokens) == 1 else arguments.tokens
    of = subject(
        pipeline(arguments),
        num_steps=arguments.steps or (30 if toy else 2),
        batch_size=arguments.batch or (24 if toy else 1),
        num_units=arguments.units,
        latents=arguments.latents,
    )
    with workplace(arguments) as folder:
        measure(arguments, of, dict.fromkeys(zip(arguments.keep, tokens, strict=True)), folder)


def pipeline(arguments: argparse.Namespace) -> Any:
    if arguments.model == "toy":
        return toy_pipeline()
    return sdxl_pipeline(depth=arguments.depth) if arguments.model == "sdxl" else PIPELINES[arguments.model]()


def measure(arguments: argparse.Namespace, of: Subject, kinds: dict[tuple[str, int], None], folder: Path) -> None:
    sinks: dict[tuple[str, int], list[Timed]] = {kind: [] for kind in kinds}

    def run(kind: tuple[str, int], watch: Stopwatch) -> None:
        sinks[kind].append(collected(watch, of.with_tokens(kind[1]), kind[0], folder / "run.zarr"))

    runs = {"bare": lambda watch: bare(watch, of), **{kind: lambda watch, kind=kind: run(kind, watch) for kind in kinds}}
    if arguments.model == "toy":
        for warm_up in runs.values():
            warm_up(Stopwatch())
        sinks.update({kind: [] for kind in kinds})
    times = in_turns(runs, arguments.repeats)
    rate, (written, _) = multiply_rate(), disk_rates(folder)
    base, figures, details = median_wall(times["bare"]), [], {}
    for keep, tokens in kinds:
        sites = of.with_tokens(tokens).found.sites
        folded = keep == "moments"
        written_bytes = {
            "hooks": 0,
            "moments": sums_nbytes(sites, of.num_steps),
            "features": features_nbytes(sites, of.num_steps, len(of.prompts), "float16"),
        }
        nbytes = written_bytes[keep]
        multiplied = multiply_operations(sites, of.num_steps, len(of.prompts)) / rate if folded else 0.0
        # Features are written beside the model, sums after it.
        floor = 1 + (multiplied + nbytes / written) / base if folded else max(1.0, nbytes / written / base)
        total = median_wall(times[keep, tokens])
        ran = list(zip(sinks[keep, tokens], times[keep, tokens], strict=True))
        shares = {
            "sink": statistics.median(sink.received / watch.wall for sink, watch in ran),
            "checkpoint": statistics.median(sink.written / watch.wall for sink, watch in ran),
        }
        rest = (
            f"of our time: sink {shares['sink']:.1%} (multiplying at the floor {multiplied / total:.1%}), "
            f"checkpoint {shares['checkpoint']:.1%} (writing at the floor {nbytes / written / total:.1%}); else hooks and checks"
        )
        if keep == "hooks":
            calls = len(of.found.projections) * of.num_steps * of.num_units
            of_turns = [ours.cpu - bare.cpu for ours, bare in zip(times[keep, tokens], times["bare"], strict=True)]
            rest = f"a projection in a forward costs {1e6 * statistics.median(of_turns) / calls:.0f} us of CPU time"
        name = f"{arguments.model} {keep}, {f'{tokens} tokens' if tokens else 'all tokens'}"
        goal = None if keep == "features" and not tokens else TARGETS.get((arguments.model, keep))
        figures.append(figure(name, times[keep, tokens], times["bare"], floor=floor, at_most=goal, rest=rest))
        details[name] = {"seconds": total, "bytes": nbytes, "multiply_seconds_at_floor": multiplied}
    show(
        "collect", figures, arguments, bare_seconds=base, multiply_rate=rate, write_rate=written, details=details,
        all_walls={str(name): [w.wall for w in watches] for name, watches in times.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
