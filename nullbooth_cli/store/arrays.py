"""Arrays, attributes and progress of one Zarr group, without knowing what they mean."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.array import AsyncArray

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.chunks import decode, encode

TEXT_CHUNK = 1024


class ArrayGroup:
    """An open Zarr group: attributes, arrays that are written by whole chunks, and progress."""

    def __init__(self, group: zarr.Group, backing: Backing) -> None:
        self.url = backing.url
        self._group = group
        self._backing = backing
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def reload(self) -> None:
        """Forget what was read of attributes and shapes: another process may have changed them."""
        mode = "r" if self._backing.zarr.read_only else "r+"
        self._group = zarr.open_group(self._backing.zarr, mode=mode, use_consolidated=False, zarr_format=3)  # type: ignore[arg-type]  # a literal
        self._arrays = {}

    # Progress: one cell per unit, 0 until the unit is done

    def create_progress(self, stage: str, num_units: int) -> None:
        self.delete(f"progress/{stage}")
        self._create(f"progress/{stage}", (num_units,), (1,), "u4", 0)
        self._backing.sync()

    def extend_progress(self, stage: str, num_units: int) -> None:
        self._resize(f"progress/{stage}", num_units)

    def cells(self, stage: str, damaged: int | None = None) -> NDArray[np.uint32]:
        """What each unit of a stage has in its cell, `[units]`, 0 for not done; empty before the stage was begun.

        A damaged cell is a StoreError, or counts as `damaged`.
        """
        name = f"progress/{stage}"
        if not self._has(name):
            return np.zeros(0, dtype=np.uint32)
        num_units = self._array(name).shape[0]
        found = self._backing.get_many([_chunk_key(name, (unit,)) for unit in range(num_units)])
        cells = np.zeros(num_units, dtype=np.uint32)
        for unit, data in enumerate(found):
            try:
                cells[unit] = 0 if data is None else self._decoded(name, (unit,), data)[0]
            except StoreError:
                if damaged is None:
                    raise
                cells[unit] = damaged
        return cells

    def mend_cells(self, stage: str) -> None:
        """Make damaged cells say that their units are not done."""
        unreadable = 2**32 - 1
        self.mark(stage, np.flatnonzero(self.cells(stage, damaged=unreadable) == unreadable).tolist(), 0)

    def progress(self, stage: str) -> NDArray[np.bool_]:
        """Which units of a stage are done, `[units]`."""
        return self.cells(stage) > 0

    def commit(self, stage: str, units: int | Iterable[int], cell: int = 1) -> None:
        """Make all that was written durable, then mark the units done: in this order."""
        self._backing.sync()
        self.mark(stage, [units] if isinstance(units, int) else units, cell)

    def mark(self, stage: str, units: Iterable[int], cell: int) -> None:
        name, units = f"progress/{stage}", list(units)
        if not units:
            return
        parts = encode(np.array([cell]), self._array(name).dtype, False)
        self._backing.put_many([(_chunk_key(name, (unit,)), parts) for unit in units])
        self._backing.sync()

    def note_pace(self, stage: str, seconds_per_unit: float) -> None:
        """Leave behind how long a unit takes, for those who plan."""
        # On the group: an array's attributes share a file with its shape, which another process may have changed since.
        with self._writing():
            self._group["progress"].update_attributes({f"{stage}_seconds_per_unit": seconds_per_unit})

    def pace(self, stage: str) -> float | None:
        """Seconds that a unit of a stage took when it was last run here; None if it never was."""
        if not self._has("progress"):
            return None
        found = self._group["progress"].attrs.get(f"{stage}_seconds_per_unit")
        return float(found) if isinstance(found, int | float) else None

    # Plumbing

    def delete(self, name: str) -> None:
        """Remove an array or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        # Without looking: a kill can leave an array whose group is not there yet.
        with self._writing():
            del self._group[name]

    def bytes_of(self, name: str) -> int:
        """Bytes on disk below a group of the store."""
        return self._backing.nbytes(name)

    def _has(self, name: str) -> bool:
        return name in self._arrays or name in self._group

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: Any,
        fill: Any,
        attributes: dict[str, Any] | None = None,
        *,
        compressed: bool = False,
    ) -> None:
        crc = Crc32cCodec()
        with self._writing():
            self._arrays[name] = self._group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill,
                filters=None,
                compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), crc] if compressed else [crc],
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes=attributes or {},
                config={"write_empty_chunks": True},
            )

    def _resize(self, name: str, length: int, axis: int = 0) -> None:
        array = self._array(name)
        if array.shape[axis] < length:
            with self._writing():
                array.resize(tuple(length if i == axis else n for i, n in enumerate(array.shape)))

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            found = self._group.get(name)
            if not isinstance(found, zarr.Array):
                raise StoreError(f"{self.url} has no array {name}", self._mend(name))
            self._arrays[name] = found
        return self._arrays[name]

    def _write_chunk(self, name: str, index: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write one whole chunk; `index` counts chunks, not elements."""
        array = self._array(name)
        if values.shape != array.chunks:
            raise ValueError(f"{name}: a chunk is {array.chunks}, got {values.shape}")
        self._backing.put(_chunk_key(name, index), encode(values, array.dtype, _is_compressed(array)))

    def _read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Read one whole chunk. Raises StoreError naming it if it is missing or damaged."""
        data = self._backing.get(_chunk_key(name, index))
        if data is None:
            raise self._damaged(name, index, "it is missing")
        return self._decoded(name, index, data)

    def _decoded(self, name: str, index: tuple[int, ...], data: NDArray[np.uint8]) -> NDArray[Any]:
        array = self._array(name)
        try:
            return decode(data, array.dtype, array.chunks, _is_compressed(array))
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, index, str(error)) from error

    def _damaged(self, name: str, index: tuple[int, ...], why: str) -> StoreError:
        return StoreError(f"{self.url}: {name} chunk {_chunk_key('', index)[1:]} is damaged: {why}", self._mend(name))

    def _mend(self, name: str) -> str:
        """The command that writes an array again; progress is written by the stage that it is of."""
        group, _, rest = name.partition("/")
        stage, flag = _WRITERS.get(rest if group == "progress" else group, ("schedule", "--force"))
        return f"nullbooth {stage} {flag} -s {self.url} writes it again"

    def _write_vector(self, name: str, values: Sequence[Any] | NDArray[Any]) -> None:
        data = np.asarray(values, dtype="f8")
        self._create(name, data.shape, data.shape, "f8", "NaN")
        self._write_chunk(name, (0,), data)

    def _read_vector(self, name: str) -> NDArray[np.float64]:
        return self._read_chunk(name, (0,))

    def _write_texts(self, name: str, start: int, texts: list[str]) -> None:
        """Put texts into rows from `start`; the array is made or grown as needed, and a row never written is empty.

        An array that grows does so last: a kill before that leaves it as it was, not without a chunk.
        """
        if not self._has(name):
            self._create(name, (0,), (TEXT_CHUNK,), str, "")
        array, end = self._array(name).async_array, start + len(texts)
        first = min(start, array.shape[0])
        if end > first:
            longer = array.metadata.update_shape((max(end, array.shape[0]),))
            with self._writing():
                values = np.array([""] * (start - first) + texts, dtype=object)
                whole = replace(array.config, write_empty_chunks=True)  # else a chunk of empty rows would be taken away
                zarr.Array(AsyncArray(longer, array.store_path, whole))[first:end] = values
        self._resize(name, end)

    def _read_texts(self, name: str) -> list[str]:
        array = self._array(name)
        try:
            for chunk in range(-(-array.shape[0] // TEXT_CHUNK)):
                if self._backing.get(_chunk_key(name, (chunk,))) is None:
                    raise self._damaged(name, (chunk,), "it is missing")
            return [str(text) for text in np.asarray(array[:]).tolist()]
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, (0,), str(error)) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._backing.failure(error) from error

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]

    def _update(self, **attributes: Any) -> None:
        with self._writing():
            self._group.update_attributes(attributes)
        self._backing.sync()


_WRITERS = {
    "prompts": ("collect", "--force"),
    "features": ("collect", "--repair"),
    "parts": ("collect", "--repair"),
    "attention": ("collect", "--repair"),
    "collect": ("collect", "--repair"),
    "moments": ("covariance", "--repair"),
    "staged": ("covariance", "--repair"),
    "covariance": ("covariance", "--repair"),
    "projectors": ("project", "--force"),
    "decomposition": ("project", "--force"),
    "project": ("project", "--force"),
}


def _chunk_key(name: str, index: tuple[int, ...]) -> str:
    return f"{name}/c.{'.'.join(map(str, index))}"


def _is_compressed(array: zarr.Array[Any]) -> bool:
    return any(isinstance(codec, BloscCodec) for codec in array.compressors)
