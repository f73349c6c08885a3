"""Signs of life of a process at work, for `nullbooth status --watch`.

A thread writes them, so that no unit waits: one small object every `BEAT_SECONDS`, and none for work that is over before that.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.workers import Workers
from nullbooth_cli.progress import Pace
from nullbooth_cli.store import Heartbeat, Store

BEAT_SECONDS = 3.0


@dataclass
class WorkerProgress:
    """What the work tells the thread."""

    began: float = field(default_factory=time.time)
    units: int = 0
    last: float | None = None
    pace: Pace = field(default_factory=lambda: Pace(time.monotonic()))

    def finished(self) -> None:
        """One more unit is done."""
        self.units += 1
        self.last = time.time()
        self.pace.mark(time.monotonic(), self.units)


@contextlib.contextmanager
def beating(store: Store, workers: Workers, stage: str) -> Iterator[WorkerProgress]:
    """Leave signs in the store while a process works on a stage, and take them away afterwards, whatever ends the work."""
    at_work, over = WorkerProgress(), threading.Event()
    wrote = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            note = Heartbeat(
                workers.part,
                stage,
                socket.gethostname(),
                os.getpid(),
                at_work.began,
                at_work.units,
                at_work.last,
                at_work.pace.seconds_per_unit,
                time.time(),
            )
            wrote.set()
            with contextlib.suppress(NullboothError):  # a full disk or a broken network stops the work itself, and says why
                store.heartbeats.write(note)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield at_work
    finally:
        over.set()
        thread.join()
        if wrote.is_set():
            with contextlib.suppress(NullboothError):  # it must not hide what went wrong before
                store.heartbeats.remove(workers.part)
