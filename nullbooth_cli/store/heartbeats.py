"""Notes of the processes at work on a store: how far each is, for `status --watch`. Nothing else relies on them.

    activity/<worker>      a group without arrays; its attributes are the note, in one object

Each process writes only its own note, whole and in one put, and removes it when its work on a stage ends. A note that stays was
left by a process that was killed. Anything that is not a note of this version is left out: a run must not
fail because of it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from zarr.core.sync import sync

from nullbooth_cli.store.arrays import ArrayGroup

GROUP = "activity"
LARGEST = 2.0**53


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
        self._arrays.create_group(f"{GROUP}/{note.worker}", asdict(note))

    def read(self) -> list[Heartbeat]:
        """The notes, in the order of their workers' names. Reads one object for each."""

        async def _names() -> list[str]:
            return sorted([name async for name in self._arrays.backing.zarr.list_dir(GROUP) if name != "zarr.json"])

        names = sync(_names())
        found = self._arrays.backing.get_many([f"{GROUP}/{name}/zarr.json" for name in names])
        # A note that was listed may be gone by now.
        notes = [_heartbeat(name, data.tobytes()) for name, data in zip(names, found, strict=True) if data is not None]
        return [note for note in notes if note]

    def clear(self) -> None:
        """Remove all notes, whatever they say. Call it with the store locked: processes that are gone left them."""
        self._arrays.delete(GROUP)

    def remove(self, worker: str) -> None:
        """Remove a worker's note, if it is there."""
        self._arrays.delete(f"{GROUP}/{worker}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # type: ignore[arg-type]  # of these types; NaN is not less


_IS_VALID: dict[str, Callable[[object], bool]] = {
    "stage": lambda value: isinstance(value, str),
    "host": lambda value: isinstance(value, str),
    "pid": lambda value: type(value) is int,
    "began": _is_number,
    "units": lambda value: type(value) is int and 0 <= value < LARGEST,
    "last": lambda value: value is None or _is_number(value),
    "time": _is_number,
}


def _heartbeat(worker: str, data: bytes) -> Heartbeat | None:
    """The note of a worker, or None for anything else. One of an earlier version may have more attributes, which are ignored."""
    try:
        attributes = json.loads(data)["attributes"]
        found = {name: attributes[name] for name in ("worker", *_IS_VALID)}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    sound = found["worker"] == worker and all(is_valid(found[name]) for name, is_valid in _IS_VALID.items())
    return Heartbeat(**found) if sound and (found["last"] is None) == (found["units"] == 0) else None
