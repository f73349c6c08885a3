"""Arrays, attributes and progress of one Zarr group, without knowing what they mean."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.files import DurableLocalStore, resource_error


class ArrayGroup:
    """An open Zarr group: attributes, arrays, progress, and the lock that lets one process write at a time."""

    def __init__(self, path: Path, group: zarr.Group, backing: DurableLocalStore) -> None:
        self.path = path
        self._group = group
        self._backing = backing
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing. Raises StoreError naming the holder; a killed holder leaves nothing behind.

        The lock is a file beside the store: inside, Zarr would find an object that it does not know.
        """
        path = Path(f"{self.path}.lock")
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            holder = path.read_text() or "another process"
            raise StoreError(
                f"{self.path} is in use by {holder}", "wait for it, or stop it; its finished units are kept"
            ) from error
        try:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink()
            yield
        finally:
            path.write_text("")
            lock.release()

    # Progress

    def create_progress(self, stage: str, num_units: int) -> None:
        self.delete(f"progress/{stage}")
        self._create(f"progress/{stage}", (num_units,), (1,), "u1", 0)
        self._backing.sync()

    def progress(self, stage: str) -> NDArray[np.bool_]:
        """Which units of a stage are done, `[units]`; empty before the stage was begun. Cost: about 0.5 ms a unit."""
        if f"progress/{stage}" not in self._group:
            return np.zeros(0, dtype=bool)
        return np.asarray(self._read(self._array(f"progress/{stage}"), slice(None)) == 1)

    def commit(self, stage: str, unit: int) -> None:
        """Make all that was written durable, then mark the unit done: in this order."""
        with self._writing():
            self._backing.sync()
        self._write(self._array(f"progress/{stage}"), (unit,), 1)

    # Plumbing

    def delete(self, name: str) -> None:
        """Remove an array or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        if name in self._group:
            with self._writing():
                del self._group[name]

    def bytes_of(self, name: str) -> int:
        """Bytes on disk below a group of the store."""
        folder = self.path / name
        return sum(os.path.getsize(os.path.join(root, file)) for root, _, files in os.walk(folder) for file in files)

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str,
        fill: Any,
        codecs: list[Any] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        with self._writing():
            self._arrays[name] = self._group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill,
                filters=None,
                compressors=codecs or [Crc32cCodec()],
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes=attributes or {},
                config={"write_empty_chunks": True},
            )

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            found = self._group.get(name)
            if not isinstance(found, zarr.Array):
                raise StoreError(f"{self.path} has no array {name}", f"nullbooth {_stage_of(name)} --force writes it again")
            self._arrays[name] = found
        return self._arrays[name]

    def _write_vector(self, name: str, values: Any) -> None:
        data: Any = np.asarray(values, dtype=object if isinstance(values[0], str) else None)
        with self._writing():
            array = self._group.create_array(
                name, shape=data.shape, chunks=data.shape, dtype=str if data.dtype == object else "f8"
            )
            array[:] = data

    def _write(self, array: zarr.Array[Any], where: Any, values: Any) -> None:
        with self._writing():
            array[where] = values

    def _read(self, array: zarr.Array[Any], where: Any) -> NDArray[Any]:
        try:
            return np.asarray(array[where])
        except (ValueError, RuntimeError, OSError) as error:
            index = where[0] if isinstance(where, tuple) else 0
            chunk = f"{array.path}[{index}" + (
                f", prompts {where[1].start}..]" if isinstance(where, tuple) and len(where) > 1 else "]"
            )
            raise StoreError(
                f"{self.path}: a chunk of {chunk} is damaged: {error}",
                f"nullbooth {_stage_of(array.path)} -s {self.path} --force writes it again",
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise resource_error(error, self.path) from error

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]

    def _update(self, **attributes: Any) -> None:
        with self._writing():
            self._group.update_attributes(attributes)


def _stage_of(name: str) -> str:
    """The command that writes an array; progress is written by the stage that it is of."""
    group, _, rest = name.partition("/")
    owner = rest if group == "progress" else group
    owners = {
        "prompts": "collect",
        "features": "collect",
        "moments": "covariance",
        "projectors": "project",
        "decomposition": "project",
    }
    return owners.get(owner, owner)
