"""Heartbeats: a small note in the store, from each process at work, for `status --watch`.

A thread writes it, because a unit may take minutes: without a note, a long unit looks like a killed process. No unit waits for
it. It costs one small object every `BEAT_SECONDS`, and none for work that ends before that.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.workers import Workers
from nullbooth_cli.store import Heartbeat, Store

BEAT_SECONDS = 3.0


@contextlib.contextmanager
def beating(store: Store, workers: Workers, stage: str) -> Iterator[Callable[[], None]]:
    """Write heartbeats while a process works on a stage, then remove them; yields a function to call after each unit."""
    began, units = time.time(), 0
    last: float | None = None
    over, wrote = threading.Event(), False

    def finished_unit() -> None:
        nonlocal units, last
        units, last = units + 1, time.time()

    def beat() -> None:
        nonlocal wrote
        while not over.wait(BEAT_SECONDS):
            note = Heartbeat(
                worker=workers.name,
                stage=stage,
                host=socket.gethostname(),
                pid=os.getpid(),
                began=began,
                units=units,
                last=last,
                time=time.time(),
            )
            wrote = True
            with contextlib.suppress(NullboothError):  # a full disk or a broken network stops the work itself, with a reason
                store.heartbeats.write(note)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield finished_unit
    finally:
        over.set()
        thread.join()
        if wrote:
            with contextlib.suppress(NullboothError):  # it must not hide an earlier error
                store.heartbeats.remove(workers.name)
