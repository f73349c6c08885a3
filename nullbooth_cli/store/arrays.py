"""Arrays and attributes of one Zarr group, without knowing what they mean.

Every array is written and read by whole chunks. Names are paths inside the group, such as `moments/<site>/count`; a chunk is
named by its place in the grid of chunks, such as `c.0.3`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.array import AsyncArray

from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store.backing import Backing, Bytes
from nullbooth_cli.store.chunks import decode, encode

TEXT_CHUNK = 1024
# How to rewrite the arrays below a group. `progress/<stage>` is looked up by its stage.
_REWRITES = {
    "schedule": Rerun("schedule", force=True),
    "prompts": Rerun("collect", force=True),
    "features": Rerun("collect", repair=True),
    "parts": Rerun("collect", repair=True),
    "attention": Rerun("collect", repair=True),
    "collect": Rerun("collect", repair=True),
    "moments": Rerun("covariance", repair=True),
    "staged": Rerun("covariance", repair=True),
    "covariance": Rerun("covariance", repair=True),
    "projectors": Rerun("project", force=True),
    "decomposition": Rerun("project", force=True),
    "project": Rerun("project", force=True),
}


class ArrayGroup:
    """An open Zarr group: its attributes, and arrays that are written by whole chunks.

    Shapes and attributes that were read stay in memory until `reload`. `backing` holds the bytes, `url` names it in messages.
    """

    def __init__(self, group: zarr.Group, backing: Backing) -> None:
        self.url = backing.url
        self.backing = backing
        self._group = group
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def reload(self) -> None:
        """Forget all shapes and attributes: another process may have changed them."""
        self._group = self._opened_again()
        self._arrays = {}

    def reload_if_changed(self) -> bool:
        """`reload` if the attributes are no longer those that were read. Cost: one small object."""
        group = self._opened_again()
        if group.attrs.asdict() == self._group.attrs.asdict():
            return False
        self._group, self._arrays = group, {}
        return True

    def _opened_again(self) -> zarr.Group:
        mode = "r" if self.backing.zarr.read_only else "r+"
        return zarr.open_group(self.backing.zarr, mode=mode, use_consolidated=False, zarr_format=3)  # type: ignore[arg-type]  # a literal

    def delete(self, name: str) -> None:
        """Remove an array, or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        # No check first: a kill can leave an array whose group is not there yet.
        with self.writing():
            del self._group[name]

    def has(self, name: str) -> bool:
        """Whether there is an array or a group of this name. Cost: one small object, unless it is an array in use."""
        return name in self._arrays or name in self._group

    def children(self, name: str) -> list[str]:
        """The names inside a group, sorted; none if the group is not there."""
        found = self._group.get(name)
        return sorted(found) if isinstance(found, zarr.Group) else []

    def nbytes(self, name: str) -> int:
        """Bytes of all objects below a group, as they are stored."""
        return self.backing.nbytes(name)

    # Arrays

    def create(
        self,
        name: str,
        *,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any] | str | type[str],
        fill: float | str,
        attributes: Mapping[str, object] | None = None,
        compressed: bool = False,
    ) -> None:
        """Make an array without chunks; where none is written, other programs read `fill`. Cost: about 1 ms."""
        crc = Crc32cCodec()
        with self.writing():
            self._arrays[name] = self._group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill,
                filters=None,
                compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), crc] if compressed else [crc],
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes=dict(attributes or {}),  # type: ignore[arg-type]  # JSON
                config={"write_empty_chunks": True},
            )

    def resize(self, name: str, length: int, axis: int = 0) -> None:
        """Make an array at least this long on an axis; it never becomes shorter."""
        array = self.array(name)
        if array.shape[axis] < length:
            with self.writing():
                array.resize(tuple(length if i == axis else n for i, n in enumerate(array.shape)))

    def find(self, name: str) -> zarr.Array[Any] | None:
        """An array, or None if there is none. Cost: one small object the first time."""
        if name not in self._arrays:
            found = self._group.get(name)
            if not isinstance(found, zarr.Array):
                return None
            self._arrays[name] = found
        return self._arrays[name]

    def array(self, name: str) -> zarr.Array[Any]:
        """An array: its shape, chunks, dtype and attributes. Raises StoreError if there is none."""
        found = self.find(name)
        if found is None:
            raise StoreError(f"{self.url} has no array {name}", self._rerun(name))
        return found

    def write_chunk(self, name: str, index: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write one whole chunk; `index` counts chunks, not elements."""
        array = self.array(name)
        if values.shape != array.chunks:
            raise ValueError(f"{name}: a chunk is {array.chunks}, got {values.shape}")
        self.backing.put(chunk_key(name, index), self.encode_chunk(name, values))

    def read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Read one whole chunk. Raises StoreError naming it if it is missing or damaged."""
        data = self.backing.get(chunk_key(name, index))
        if data is None:
            raise self._damaged(name, index, "it is missing")
        return self.decode_chunk(name, index, data)

    def encode_chunk(self, name: str, values: NDArray[Any]) -> list[Bytes]:
        """The buffers of a chunk's object, in order."""
        array = self.array(name)
        return encode(values, array.dtype, compressed=_is_compressed(array))

    def decode_chunk(self, name: str, index: tuple[int, ...], data: NDArray[np.uint8]) -> NDArray[Any]:
        """The values in a chunk's object. Raises StoreError naming the chunk if it is damaged."""
        array = self.array(name)
        try:
            return decode(data, array.dtype, array.chunks, compressed=_is_compressed(array))
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, index, str(error)) from error

    def _damaged(self, name: str, index: tuple[int, ...], why: str) -> StoreError:
        return StoreError(f"{self.url}: {name} chunk {chunk_key('', index)[1:]} is damaged: {why}", self._rerun(name))

    def _rerun(self, name: str) -> Rerun:
        """The stage that writes an array again."""
        group, _, rest = name.partition("/")
        stage = _REWRITES.get(rest if group == "progress" else group, _REWRITES["schedule"])
        return replace(stage, store=self.url)

    def write_vector(self, name: str, values: Sequence[float] | NDArray[np.float64]) -> None:
        """Make a float64 array `[N]` of one chunk, in the place of an earlier one."""
        data = np.asarray(values, dtype="f8")
        self.create(name, shape=data.shape, chunks=data.shape, dtype="f8", fill="NaN")
        self.write_chunk(name, (0,), data)

    def read_vector(self, name: str) -> NDArray[np.float64]:
        """`[N]`, as `write_vector` wrote it."""
        return self.read_chunk(name, (0,))

    def write_texts(self, name: str, start: int, texts: list[str]) -> None:
        """Write texts into rows from `start`; the array is made or grown as needed. A row that was never written is empty.

        The array grows last, so that a kill before that leaves the array as it was.
        """
        if self.find(name) is None:
            self.create(name, shape=(0,), chunks=(TEXT_CHUNK,), dtype=str, fill="")
        array, end = self.array(name).async_array, start + len(texts)
        first = min(start, array.shape[0])
        if end > first:
            longer = array.metadata.update_shape((max(end, array.shape[0]),))
            with self.writing():
                values = np.array([""] * (start - first) + texts, dtype=object)
                whole = replace(array.config, write_empty_chunks=True)  # else a chunk of empty rows would be removed
                zarr.Array(AsyncArray(longer, array.store_path, whole))[first:end] = values
        self.resize(name, end)

    def read_texts(self, name: str) -> list[str]:
        """All rows. Raises StoreError if a chunk is missing or damaged."""
        array = self.array(name)
        try:
            texts = [str(text) for text in np.asarray(array[:]).tolist()]
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, (0,), str(error)) from error
        for chunk in range(-(-len(texts) // TEXT_CHUNK)):
            # To Zarr a missing chunk is one of empty rows.
            empty = not any(texts[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK])
            if empty and self.backing.get(chunk_key(name, (chunk,))) is None:
                raise self._damaged(name, (chunk,), "it is missing")
        return texts

    # Attributes

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of the operating system into ResourceError."""
        try:
            yield
        except OSError as error:
            raise self.backing.failure(error) from error

    def attribute(self, name: str) -> Any:
        """An attribute of the group itself, as JSON gives it; do not change it. Raises KeyError if there is none."""
        return self._group.attrs[name]

    def update_attributes(self, **attributes: object) -> None:
        """Set attributes of the group itself, durably."""
        with self.writing():
            self._group.update_attributes(attributes)
        self.backing.sync()

    def create_group(self, name: str, attributes: Mapping[str, object] | None = None) -> None:
        """Make a group inside this one, unless it is there."""
        with self.writing():
            if attributes is None:
                self._group.require_group(name)
            else:
                self._group.create_group(name, attributes=dict(attributes))

    def group_attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of a group inside this one, read anew; None if it is not there. Cost: one small object."""
        found = self._group.get(name)
        return found.attrs.asdict() if isinstance(found, zarr.Group) else None

    def update_group_attributes(self, name: str, **attributes: object) -> None:
        """Set attributes of a group inside this one, by one atomic write."""
        found = self._group[name]
        assert isinstance(found, zarr.Group)
        with self.writing():
            found.update_attributes(attributes)


def chunk_key(name: str, index: tuple[int, ...]) -> str:
    """The key of a chunk's object: `<name>/c.0.3`."""
    return f"{name}/c.{'.'.join(map(str, index))}"


def _is_compressed(array: zarr.Array[Any]) -> bool:
    return any(isinstance(codec, BloscCodec) for codec in array.compressors)
