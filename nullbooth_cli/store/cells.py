"""Progress: one cell per unit of a stage, 0 until the unit is done, each in a chunk of its own that is written last."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup, chunk_key
from nullbooth_cli.store.chunks import encode


class ProgressCells:
    """The progress of the stages of an open store: `progress/<stage>`."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self.arrays = arrays

    def create(self, stage: str, num_units: int) -> None:
        self.arrays.delete(f"progress/{stage}")
        self.arrays.create(f"progress/{stage}", (num_units,), (1,), "u4", 0)
        self.arrays.backing.sync()

    def extend(self, stage: str, num_units: int) -> None:
        self.arrays.resize(f"progress/{stage}", num_units)

    def cells(self, stage: str, damaged: int | None = None) -> NDArray[np.uint32]:
        """What each unit of a stage has in its cell, `[units]`, 0 for not done; empty before the stage was begun.

        A damaged cell is a StoreError, or counts as `damaged`.
        """
        name = f"progress/{stage}"
        if not self.arrays.has(name):
            return np.zeros(0, dtype=np.uint32)
        num_units = self.arrays.array(name).shape[0]
        found = self.arrays.backing.get_many([chunk_key(name, (unit,)) for unit in range(num_units)])
        cells = np.zeros(num_units, dtype=np.uint32)
        for unit, data in enumerate(found):
            try:
                cells[unit] = 0 if data is None else self.arrays.decoded(name, (unit,), data)[0]
            except StoreError:
                if damaged is None:
                    raise
                cells[unit] = damaged
        return cells

    def reset_damaged(self, stage: str) -> None:
        """Make damaged cells say that their units are not done."""
        unreadable = 2**32 - 1
        self.mark(stage, np.flatnonzero(self.cells(stage, damaged=unreadable) == unreadable).tolist(), 0)

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Which units of a stage are done, `[units]`."""
        return self.cells(stage) > 0

    def commit(self, stage: str, units: int | Iterable[int], cell: int = 1) -> None:
        """Make all that was written durable, then mark the units done: in this order."""
        self.arrays.backing.sync()
        self.mark(stage, [units] if isinstance(units, int) else units, cell)

    def mark(self, stage: str, units: Iterable[int], cell: int) -> None:
        name, units = f"progress/{stage}", list(units)
        if not units:
            return
        parts = encode(np.array([cell]), self.arrays.array(name).dtype, False)
        self.arrays.backing.put_many([(chunk_key(name, (unit,)), parts) for unit in units])
        self.arrays.backing.sync()

    def note_pace(self, stage: str, seconds_per_unit: float) -> None:
        """Leave behind how long a unit takes, for those who plan."""
        # On the group: an array's attributes share a file with its shape, which another process may have changed since.
        with self.arrays.writing():
            self.arrays.group["progress"].update_attributes({f"{stage}_seconds_per_unit": seconds_per_unit})

    def pace(self, stage: str) -> float | None:
        """Seconds that a unit of a stage took when it was last run here; None if it never was."""
        if not self.arrays.has("progress"):
            return None
        found = self.arrays.group["progress"].attrs.get(f"{stage}_seconds_per_unit")
        return float(found) if isinstance(found, int | float) else None
