"""Arrays and attributes of one Zarr group, without knowing what they mean."""

import contextlib
from collections.abc import Iterator, Sequence
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
    """An open Zarr group: its attributes, and arrays that are written by whole chunks."""

    def __init__(self, group: zarr.Group, backing: Backing) -> None:
        self.url = backing.url
        self.group = group
        self.backing = backing
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def reload(self) -> None:
        """Forget what was read of attributes and shapes: another process may have changed them."""
        mode = "r" if self.backing.zarr.read_only else "r+"
        self.group = zarr.open_group(self.backing.zarr, mode=mode, use_consolidated=False, zarr_format=3)  # type: ignore[arg-type]  # a literal
        self._arrays = {}

    def delete(self, name: str) -> None:
        """Remove an array or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        # Without looking: a kill can leave an array whose group is not there yet.
        with self.writing():
            del self.group[name]

    def children(self, name: str) -> list[str]:
        """The names of what is in a group of this one, sorted; none if it is not there."""
        return sorted(self.group[name]) if self.has(name) else []  # type: ignore[arg-type]  # a group

    def nbytes(self, name: str) -> int:
        """Bytes on disk below a group of the store."""
        return self.backing.nbytes(name)

    def has(self, name: str) -> bool:
        return name in self._arrays or name in self.group

    def create(
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
        with self.writing():
            self._arrays[name] = self.group.create_array(
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

    def resize(self, name: str, length: int, axis: int = 0) -> None:
        array = self.array(name)
        if array.shape[axis] < length:
            with self.writing():
                array.resize(tuple(length if i == axis else n for i, n in enumerate(array.shape)))

    def array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            found = self.group.get(name)
            if not isinstance(found, zarr.Array):
                raise StoreError(f"{self.url} has no array {name}", self._mend(name))
            self._arrays[name] = found
        return self._arrays[name]

    def write_chunk(self, name: str, index: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write one whole chunk; `index` counts chunks, not elements."""
        array = self.array(name)
        if values.shape != array.chunks:
            raise ValueError(f"{name}: a chunk is {array.chunks}, got {values.shape}")
        self.backing.put(chunk_key(name, index), encode(values, array.dtype, _is_compressed(array)))

    def read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Read one whole chunk. Raises StoreError naming it if it is missing or damaged."""
        data = self.backing.get(chunk_key(name, index))
        if data is None:
            raise self._damaged(name, index, "it is missing")
        return self.decoded(name, index, data)

    def decoded(self, name: str, index: tuple[int, ...], data: NDArray[np.uint8]) -> NDArray[Any]:
        array = self.array(name)
        try:
            return decode(data, array.dtype, array.chunks, _is_compressed(array))
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, index, str(error)) from error

    def _damaged(self, name: str, index: tuple[int, ...], why: str) -> StoreError:
        return StoreError(f"{self.url}: {name} chunk {chunk_key('', index)[1:]} is damaged: {why}", self._mend(name))

    def _mend(self, name: str) -> str:
        """The command that writes an array again; progress is written by the stage that it is of."""
        group, _, rest = name.partition("/")
        stage, flag = _WRITERS.get(rest if group == "progress" else group, ("schedule", "--force"))
        return f"nullbooth {stage} {flag} -s {self.url} writes it again"

    def write_vector(self, name: str, values: Sequence[Any] | NDArray[Any]) -> None:
        data = np.asarray(values, dtype="f8")
        self.create(name, data.shape, data.shape, "f8", "NaN")
        self.write_chunk(name, (0,), data)

    def read_vector(self, name: str) -> NDArray[np.float64]:
        return self.read_chunk(name, (0,))

    def write_texts(self, name: str, start: int, texts: list[str]) -> None:
        """Put texts into rows from `start`; the array is made or grown as needed, and a row never written is empty.

        An array that grows does so last: a kill before that leaves it as it was, not without a chunk.
        """
        if not self.has(name):
            self.create(name, (0,), (TEXT_CHUNK,), str, "")
        array, end = self.array(name).async_array, start + len(texts)
        first = min(start, array.shape[0])
        if end > first:
            longer = array.metadata.update_shape((max(end, array.shape[0]),))
            with self.writing():
                values = np.array([""] * (start - first) + texts, dtype=object)
                whole = replace(array.config, write_empty_chunks=True)  # else a chunk of empty rows would be taken away
                zarr.Array(AsyncArray(longer, array.store_path, whole))[first:end] = values
        self.resize(name, end)

    def read_texts(self, name: str) -> list[str]:
        array = self.array(name)
        try:
            for chunk in range(-(-array.shape[0] // TEXT_CHUNK)):
                if self.backing.get(chunk_key(name, (chunk,))) is None:
                    raise self._damaged(name, (chunk,), "it is missing")
            return [str(text) for text in np.asarray(array[:]).tolist()]
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, (0,), str(error)) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.backing.failure(error) from error

    def attribute(self, name: str) -> Any:
        return self.group.attrs[name]

    def update_attributes(self, **attributes: Any) -> None:
        with self.writing():
            self.group.update_attributes(attributes)
        self.backing.sync()


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


def chunk_key(name: str, index: tuple[int, ...]) -> str:
    return f"{name}/c.{'.'.join(map(str, index))}"


def _is_compressed(array: zarr.Array[Any]) -> bool:
    return any(isinstance(codec, BloscCodec) for codec in array.compressors)
