"""Who is at work on a store, and how fast: notes that the processes leave for those who watch, and that nothing else relies on.

    activity/<worker>      a group without arrays; its attributes are the note, and one object holds them

Each process writes its own note only, whole and by one put, and takes it away when its work on a stage ends. A note that stays is
that of a process that was killed.
"""

import json
from dataclasses import asdict, dataclass

from zarr.core.sync import sync

from nullbooth_cli.store.arrays import ArrayGroup

GROUP = "activity"


@dataclass(frozen=True)
class Heartbeat:
    """What a process says of its work on a stage; times are seconds since 1970 by its own clock.

    `units` were finished by it since it `began`, the latest of them at `last`; `time` is its last sign of life.
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
        self.arrays = arrays

    def write(self, note: Heartbeat) -> None:
        with self.arrays.writing():
            self.arrays.group.require_group(GROUP)
        # As Zarr would write it, but over an earlier note in one step: a reader sees the old one or this one.
        document = {"zarr_format": 3, "node_type": "group", "attributes": asdict(note)}
        self.arrays.backing.put(f"{GROUP}/{note.worker}/zarr.json", [json.dumps(document).encode()])

    def read(self) -> list[Heartbeat]:
        """The notes that are there, in the order of their workers' names. Reads one object for each."""

        async def names() -> list[str]:
            return [name async for name in self.arrays.backing.zarr.list_dir(GROUP) if name != "zarr.json"]

        found = self.arrays.backing.get_many([f"{GROUP}/{name}/zarr.json" for name in sorted(sync(names()))])
        # One that was listed may be gone by now.
        return [Heartbeat(**json.loads(data.tobytes())["attributes"]) for data in found if data is not None]

    def remove(self, worker: str) -> None:
        self.arrays.delete(f"{GROUP}/{worker}")
