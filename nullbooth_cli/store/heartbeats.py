"""Notes of the processes at work on a store, for those who watch a run; nothing else relies on them.

    activity/<worker>      a group without arrays; its attributes are the note, and one object holds them

Each process writes only its own note, whole and by one put, and removes it when its work on a stage ends. A note that stays is
that of a process that was killed.
"""

import json
from dataclasses import asdict, dataclass

from zarr.core.sync import sync

from nullbooth_cli.store.arrays import ArrayGroup

GROUP = "activity"


@dataclass(frozen=True)
class Heartbeat:
    """The progress of one process on a stage; times are seconds since 1970 by its own clock.

    The process has finished `units` since it `began`, the latest of them at `last`; `time` is its last sign of life.
    """

    worker: str
    stage: str
    host: str
    pid: int
    began: float
    units: int = 0
    last: float | None = None
    seconds_per_unit: float | None = None
    time: float = 0.0


class HeartbeatNotes:
    """The notes in a store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self._arrays = arrays

    def write(self, note: Heartbeat) -> None:
        """Write the note of a worker, in the place of its earlier one."""
        self._arrays.create_group(GROUP)
        # As Zarr would write it, but over an earlier note in one step: a reader sees the old one or this one.
        document = {"zarr_format": 3, "node_type": "group", "attributes": asdict(note)}
        self._arrays.backing.put(f"{GROUP}/{note.worker}/zarr.json", [json.dumps(document).encode()])

    def read(self) -> list[Heartbeat]:
        """All notes, in the order of their workers' names. Cost: one list request, and one read for each."""

        async def names() -> list[str]:
            return [name async for name in self._arrays.backing.zarr.list_dir(GROUP) if name != "zarr.json"]

        found = self._arrays.backing.get_many([f"{GROUP}/{name}/zarr.json" for name in sorted(sync(names()))])
        # A note that was listed may be gone by now.
        return [Heartbeat(**json.loads(data.tobytes())["attributes"]) for data in found if data is not None]

    def remove(self, worker: str) -> None:
        """Remove the note of a worker, if it is there."""
        self._arrays.delete(f"{GROUP}/{worker}")
