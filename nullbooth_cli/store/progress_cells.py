"""Progress: one cell per unit of a stage, 0 until the unit is done, each in a chunk of its own that is written last."""

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup, chunk_key

RELEASED = 2  # in a cell of collect: done, but the features were removed


class ProgressCells:
    """The progress of the stages of an open store: `progress/<stage>`, `[units]` uint32."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self._arrays = arrays

    def create(self, stage: str, num_units: int) -> None:
        """Start a stage anew: none of its units is done."""
        self._arrays.delete(f"progress/{stage}")
        self._arrays.create(f"progress/{stage}", shape=(num_units,), chunks=(1,), dtype="u4", fill=0)
        self._arrays.backing.sync()

    def extend(self, stage: str, num_units: int) -> None:
        """Make room for the cells of more units."""
        self._arrays.resize(f"progress/{stage}", num_units)

    def cells(self, stage: str, damaged: int | None = None) -> NDArray[np.uint32]:
        """The cell of each unit of a stage, `[units]`, 0 for not done; empty before the stage was started.

        A damaged cell is a StoreError, or counts as `damaged`. Cost: one small object for each unit.
        """
        name = f"progress/{stage}"
        array = self._arrays.find(name)
        if array is None:
            return np.zeros(0, dtype=np.uint32)
        found = self._arrays.backing.get_many([chunk_key(name, (unit,)) for unit in range(array.shape[0])])
        cells = np.zeros(len(found), dtype=np.uint32)
        for unit, data in enumerate(found):
            try:
                cells[unit] = 0 if data is None else self._arrays.decode_chunk(name, (unit,), data)[0]
            except StoreError:
                if damaged is None:
                    raise
                cells[unit] = damaged
        return cells

    def reset_damaged(self, stage: str) -> None:
        """Mark the units of damaged cells as not done."""
        unreadable = 2**32 - 1
        self.mark(stage, np.flatnonzero(self.cells(stage, damaged=unreadable) == unreadable).tolist(), 0)

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Which units of a stage are done, `[units]`. Cost: see `cells`."""
        return self.cells(stage) > 0

    def commit(self, stage: str, units: int | Iterable[int], cell: int = 1) -> None:
        """Make everything that was written durable, then mark the units as done: in this order."""
        self._arrays.backing.sync()
        self.mark(stage, [units] if isinstance(units, int) else units, cell)

    def mark(self, stage: str, units: Iterable[int], cell: int) -> None:
        """Write a value into the cells of units, durably."""
        name, units = f"progress/{stage}", list(units)
        if not units:
            return
        values = np.array([cell])
        objects = [(chunk_key(name, (unit,)), self._arrays.encode_chunk(name, (unit,), values)) for unit in units]
        self._arrays.backing.put_many(objects)
        self._arrays.backing.sync()

    def note_pace(self, stage: str, seconds_per_unit: float) -> None:
        """Write down how long a unit takes, for a later plan."""
        # On the group: an array's attributes share a file with its shape, which another process may have changed since.
        self._arrays.create_group("progress", {**self._paces(), f"{stage}_seconds_per_unit": seconds_per_unit})

    def pace(self, stage: str) -> float | None:
        """Seconds that a unit of a stage took when it last ran here; None if that is not known."""
        found = self._paces().get(f"{stage}_seconds_per_unit")
        return float(found) if isinstance(found, int | float) else None

    def _paces(self) -> dict[str, Any]:
        with contextlib.suppress(StoreError):  # damaged: no number depends on it, and the next stage writes it again
            return self._arrays.group_attributes("progress") or {}
        return {}
