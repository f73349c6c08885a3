"""Processes of nullbooth that start in no time: forked from one that has imported everything and loaded the model.

multiprocessing's fork server imports this module once and forks from then on. A fork copies only the thread that forks, so what
is imported here may start none: one thread for torch and BLAS, Zarr left untouched. Every worker checks that it was so.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.support.zygote"])
THREADS = 0
CHUNK_BYTES = 150_000

if "pytest" not in sys.modules:
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    import torch.distributed
    from tqdm import tqdm

    torch.set_num_threads(1)

    from nullbooth_cli import cli
    from nullbooth_cli.collect import sinks, units
    from nullbooth_cli.commands import draw_progress
    from nullbooth_cli.model import device, load
    from nullbooth_cli.nullspace import covariance
    from nullbooth_cli.pipeline import heartbeat, prepare_collect, workers
    from nullbooth_cli.store.moment_arrays import MomentArrays

    # Also what commands import only when they run: it must be there before the fork.
    for module in ("collect.batch_size", "commands.run_stages", "nullspace.decompose", "pipeline.plan", "pipeline.stages"):
        importlib.import_module(f"nullbooth_cli.{module}")
    pipe: Any = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device.pick_device("cpu")
    )
    THREADS = len(os.listdir("/proc/self/task"))


@dataclass(frozen=True)
class Twist:
    """What is different in a worker: seconds that every unit takes longer, how eagerly sums are written, after how many units it
    fails, how often it gives a sign to those who watch, and the bytes that no file may exceed."""

    slow: float = 0.0
    checkpoint_share: float | None = None
    fails_after: int | None = None
    beat_seconds: float | None = None
    largest_file: int | None = None


class Worker(ForkServerProcess):
    """A process that runs one nullbooth command. Files that begin with `log`: `.err`, `.out`, and the units that it began."""

    def __init__(
        self, arguments: list[str], log: Path, environment: dict[str, str] | None = None, twist: Twist = Twist()
    ) -> None:
        super().__init__(daemon=True)
        self.arguments, self.log, self.environment, self.twist = arguments, log, environment or {}, twist
        for ending in ("err", "out", "units"):
            self._file(ending).write_text("")
        self.start()

    def _file(self, ending: str) -> Path:
        return self.log.with_name(f"{self.log.name}.{ending}")

    @property
    def err(self) -> str:
        return self._file("err").read_text()

    @property
    def out(self) -> str:
        return self._file("out").read_text()

    @property
    def begun(self) -> list[int]:
        """The first row of every unit of collect that it began, in order."""
        return [int(line) for line in self._file("units").read_text().split()]

    def finish(self, seconds: float = 240) -> int:
        """Wait for it; returns its exit code, negative for a signal."""
        self.join(seconds)
        assert self.exitcode is not None, f"still running after {seconds} s\n{self.err}"
        return self.exitcode

    def run(self) -> None:
        """In the fork."""
        assert THREADS == 1, "it was not safe to fork"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a script ignores
        for descriptor, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(self._file(ending), os.O_WRONLY | os.O_APPEND), descriptor)
        os.environ.update(self.environment)
        if self.twist.largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.twist.largest_file, resource.RLIM_INFINITY))
        if self.twist.checkpoint_share:
            sinks.CHECKPOINT_SHARE = self.twist.checkpoint_share
            sinks.CHECKPOINT_RATE = float("inf")  # the first one comes after the first unit, however small the share
        covariance.COMMIT_SECONDS, workers.POLL_SECONDS, workers.PROBE_SECONDS, draw_progress.LINE_SECONDS = 0.0, 0.02, 0.2, 0.0
        if self.twist.beat_seconds:
            heartbeat.BEAT_SECONDS = self.twist.beat_seconds
        tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a kill would leave behind
        load.load_pipeline = lambda *_, **__: pipe  # type: ignore[assignment]
        real = units.run_unit

        def run_unit(model: Any, recorder: Any) -> None:
            row = recorder.members[0][0]
            with self._file("units").open("a") as file:
                file.write(f"{row}\n")
            if len(self.begun) - 1 == self.twist.fails_after:
                raise RuntimeError("this unit fails")
            time.sleep(self.twist.slow)
            real(model, recorder)

        write, layout_of = MomentArrays.write, prepare_collect.layout_of

        def write_moments(arrays: MomentArrays, *of_block: Any) -> None:
            time.sleep(self.twist.slow)
            write(arrays, *of_block)

        # Some sites then have several blocks of timesteps, one of them shorter.
        prepare_collect.layout_of = lambda *how: replace(layout_of(*how), chunk_bytes=CHUNK_BYTES)
        units.run_unit, MomentArrays.write = run_unit, write_moments  # type: ignore[method-assign]
        cli.app(self.arguments, prog_name="nullbooth")


def launch(arguments: list[str], log: Path, size: int, twists: dict[int, Twist] | None = None) -> list[Worker]:
    """The processes of a launch of one machine, with the environment that a launcher gives them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [
        Worker(
            arguments,
            log.with_name(f"{log.name}-{rank}"),
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            (twists or {}).get(rank, Twist()),
        )
        for rank in range(size)
    ]


@contextmanager
def stopped(workers: list[Worker]) -> Iterator[list[Worker]]:
    """Whatever happens, no worker is left behind."""
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
