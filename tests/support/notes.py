"""Notes of processes at work as tests make them up, and every file of a store to see what has changed."""

import time
from pathlib import Path
from typing import Any

from nullbooth_cli.store import Heartbeat


def note(worker: str = "1-of-1.0", **changes: Any) -> Heartbeat:
    """A process that collects one unit in 4 s, finished its third 2 s ago, and gave a heartbeat a second ago."""
    now = time.time()
    values = {"stage": "collect", "host": "here", "pid": 7, "began": now - 14, "units": 3, "last": now - 2, "time": now - 1}
    return Heartbeat(worker=worker, **{**values, **changes})


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder beside and below a store, with its size and the time of its last change."""
    paths = [store.parent, *store.parent.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
