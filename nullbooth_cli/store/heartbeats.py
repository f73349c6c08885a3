"""Notes of the processes at work on a store: how far each is, for `status --watch`. Nothing else relies on them.

    activity/<worker>      a group without arrays; its attributes are the note, in one object

Each process writes only its own note, whole and in one put, and removes it when its work on a stage ends. A note that stays was
left by a process that was killed.
"""

import json
from dataclasses import asdict, dataclass, fields

from zarr.core.sync import sync

from nullbooth_cli.store.arrays import ArrayGroup

GROUP = "activity"


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The note of a process about its work on a stage; times are seconds since 1970 by its own clock.

    It has finished `units` since it `began`, the latest of them at `last` (None before the first), and wrote this at `time`.
    """

    worker: str
    stage: str
    host: str
    pid: int
    began: float
    units: int
    last: float | None
    time: float


class HeartbeatNotes:
    """The notes in a store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self._arrays = arrays

    def write(self, note: Heartbeat) -> None:
        """Put a note in place of the worker's earlier one."""
        self._arrays.create_group(GROUP)
        # The bytes that Zarr would write, but over an earlier note in one step: a reader sees the old note or this one.
        document = {"zarr_format": 3, "node_type": "group", "attributes": asdict(note)}
        self._arrays.backing.put(f"{GROUP}/{note.worker}/zarr.json", [json.dumps(document).encode()])

    def read(self) -> list[Heartbeat]:
        """The notes, in the order of their workers' names. Reads one object for each."""

        async def _names() -> list[str]:
            return [name async for name in self._arrays.backing.zarr.list_dir(GROUP) if name != "zarr.json"]

        found = self._arrays.backing.get_many([f"{GROUP}/{name}/zarr.json" for name in sorted(sync(_names()))])
        # A note that was listed may be gone by now.
        return [_heartbeat(json.loads(data.tobytes())["attributes"]) for data in found if data is not None]

    def remove(self, worker: str) -> None:
        """Remove a worker's note, if it is there."""
        self._arrays.delete(f"{GROUP}/{worker}")


def _heartbeat(attributes: dict[str, object]) -> Heartbeat:
    """A note; one of an earlier version may have more attributes, which are ignored."""
    chosen: dict[str, object] = {each.name: attributes[each.name] for each in fields(Heartbeat)}
    return Heartbeat(**chosen)  # type: ignore[arg-type]  # as it was written
