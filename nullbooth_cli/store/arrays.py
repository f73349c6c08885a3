"""Arrays and attributes of one Zarr group, without knowing what they mean.

Every array is written and read by whole chunks. Names are paths inside the group, such as `moments/<site>/count`; a chunk is
named by its place in the grid of chunks, such as `c.0.3`. Metadata and chunks that belong to another place are damage
(`store/metadata.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from nullbooth_cli.datatypes import TASKS
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store.backing import Backing, Bytes
from nullbooth_cli.store.chunks import decode, encode
from nullbooth_cli.store.format import Root, open_root, record_again, write_root
from nullbooth_cli.store.metadata import ID, StoredArray, array_document, group_document, new_id, parsed, sealed, unsealed

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

    def __init__(self, root: Root, backing: Backing) -> None:
        self.url = backing.url
        self.backing = backing
        self._root = root
        self._arrays: dict[str, StoredArray] = {}

    @property
    def place(self) -> str:
        """The place that a command names: held-out prompts and tasks belong to the store that they are in."""
        return self.url.removesuffix(f"/{self._inner}") if self._inner else self.url

    @property
    def _inner(self) -> str:
        """The name inside the store around it: `heldout` or `tasks/<name>`; empty for a store of its own."""
        return self.id.partition("-")[2]

    @property
    def id(self) -> str:
        """The id of the store, drawn when it was made."""
        return str(self.attribute(ID))

    def reload(self) -> None:
        """Forget all shapes and attributes: another process may have changed them."""
        self._root = open_root(self.backing)
        self._arrays = {}

    def reload_if_changed(self) -> bool:
        """`reload` if the attributes are no longer those that were read. Cost: one small object."""
        root = open_root(self.backing)
        if root.data == self._root.data:
            return False
        self._root, self._arrays = root, {}
        return True

    def delete(self, name: str) -> None:
        """Remove an array, or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        # No check first: a kill can leave an array whose group is not there yet.
        with self.backing.writing():
            sync(self.backing.zarr.delete_dir(name))

    def has(self, name: str) -> bool:
        """Whether there is an array or a group of this name. Cost: one small object, unless it is an array in use."""
        return name in self._arrays or self.backing.get(_document_key(name)) is not None

    def children(self, name: str) -> list[str]:
        """The names inside a group, sorted; none if the group is not there. Cost: a list request and a small object for each."""

        async def _names() -> list[str]:
            return [child async for child in self.backing.zarr.list_dir(name)]

        return [child for child in sorted(sync(_names())) if self.has(f"{name}/{child}")]

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
        identity: str | None = None,
    ) -> None:
        """Make an array; where no chunk is written, other programs read `fill`. Cost: about 1 ms.

        Chunks of an earlier array of this name do not belong to it, unless both were given one `identity`.
        """
        self.make_groups_above(name)
        attributes = {**(attributes or {}), ID: identity or new_id()}
        document = array_document(
            shape=shape, chunks=chunks, dtype=dtype, fill=fill, attributes=attributes, compressed=compressed
        )
        self._put_array(name, document)

    def _put_array(self, name: str, document: Mapping[str, Any]) -> None:
        self._put_document(name, document)
        self._arrays[name] = StoredArray.described(document, name, self.id)

    def resize(self, name: str, length: int, axis: int = 0) -> None:
        """Make an array at least this long on an axis; it never becomes shorter."""
        array = self.array(name)
        if array.shape[axis] < length:
            shape = [length if i == axis else n for i, n in enumerate(array.shape)]
            self._put_array(name, {**array.document, "shape": shape})

    def find(self, name: str) -> StoredArray | None:
        """An array, or None if there is none. Cost: one small object the first time."""
        if name not in self._arrays:
            document = self._document(name)
            if document is None or document["node_type"] != "array":
                return None
            self._arrays[name] = StoredArray.described(document, name, self.id)
        return self._arrays[name]

    def array(self, name: str) -> StoredArray:
        """An array: its shape, chunks, dtype and attributes. Raises StoreError if there is none."""
        found = self.find(name)
        if found is None:
            raise StoreError(f"{self.url} has no array {name}", self.rewriting(name))
        return found

    def write_chunk(self, name: str, index: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write one whole chunk; `index` counts chunks, not elements."""
        array = self.array(name)
        if values.shape != array.chunks:
            raise ValueError(f"{name}: a chunk is {array.chunks}, got {values.shape}")
        self.backing.put(chunk_key(name, index), self.encode_chunk(name, index, values))

    def read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Read one whole chunk. Raises StoreError naming it if it is missing or damaged."""
        return self.decode_chunk(name, index, self.backing.get(chunk_key(name, index)))

    def encode_chunk(self, name: str, index: tuple[int, ...], values: NDArray[Any]) -> list[Bytes]:
        """The buffers of a chunk's object, in order."""
        array = self.array(name)
        return encode(values, array.dtype, array.tag(index), compressed=array.compressed)

    def decode_chunk(self, name: str, index: tuple[int, ...], data: NDArray[np.uint8] | None) -> NDArray[Any]:
        """The values in a chunk's object. Raises StoreError naming the chunk if it is missing (None) or damaged."""
        array = self.array(name)
        if data is None:
            raise self._damaged(name, index, "it is missing")
        try:
            return decode(data, array.dtype, array.chunks, array.tag(index), compressed=array.compressed)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, index, str(error)) from error

    def _damaged(self, name: str, index: tuple[int, ...], why: str) -> StoreError:
        return StoreError(f"{self.url}: {name} chunk {chunk_key('', index)[1:]} is damaged: {why}", self._rerun(name))

    def _rerun(self, name: str) -> Rerun | str:
        """The stage that writes a chunk again; for a task, which no stage of the store around it writes, what to do."""
        if self._inner.startswith(f"{TASKS}/"):
            return record_again(self._inner)
        group, _, rest = name.partition("/")
        stage = _REWRITES.get(rest if group == "progress" else group, _REWRITES["schedule"])
        return replace(stage, store=self.place)

    def rewriting(self, name: str) -> Rerun | str:
        """The stage that makes an array again, with its metadata. A repair makes only arrays that belong to single units."""
        found = self._rerun(name)
        if isinstance(found, str) or (name.startswith(("parts/", "attention/")) and name.count("/") == 2):
            return found
        return replace(found, force=True, repair=False)

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
        before, end = self.read_texts(name), start + len(texts)
        rows = before[:start] + [""] * (start - len(before)) + texts + before[end:]
        for chunk in range(min(start, len(before)) // TEXT_CHUNK, -(-end // TEXT_CHUNK)):
            found = rows[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK]
            self.write_chunk(name, (chunk,), np.array(found + [""] * (TEXT_CHUNK - len(found)), object))
        self.resize(name, end)

    def read_texts(self, name: str) -> list[str]:
        """All rows. Raises StoreError if a chunk is missing or damaged."""
        length = self.array(name).shape[0]
        places = [(chunk,) for chunk in range(-(-length // TEXT_CHUNK))]
        found = self.backing.get_many([chunk_key(name, place) for place in places])
        rows = [text for place, data in zip(places, found, strict=True) for text in self.decode_chunk(name, place, data)]
        return rows[:length]

    # Attributes

    def attribute(self, name: str) -> Any:
        """An attribute of the group itself, as JSON gives it; do not change it. Raises KeyError if there is none."""
        return self._root.attributes[name]

    def has_attribute(self, name: str) -> bool:
        """Whether the group itself has an attribute."""
        return name in self._root.attributes

    def update_attributes(self, **attributes: object) -> None:
        """Set attributes of the group itself, durably."""
        self._root = write_root(self.backing, {**self._root.attributes, **attributes})
        self.backing.sync()

    def create_group(self, name: str, attributes: Mapping[str, object]) -> None:
        """Make a group inside this one, or put other attributes in the place of those that it has, by one atomic write."""
        self.make_groups_above(name)
        self._put_document(name, group_document(attributes))

    def require_group(self, name: str) -> None:
        """Raise StoreError if the metadata of a group are missing or damaged. Cost: one small object."""
        if self._document(name) is None:
            raise self._damaged_document(name, "it is missing")

    def make_groups(self, names: Iterable[str]) -> None:
        """Make groups without attributes, in the place of those that are there; what is in them stays."""
        for name in names:
            self._put_document(name, group_document({}))

    def group_attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of a group inside this one, read anew; None if it is not there. Cost: one small object."""
        document = self._document(name)
        return None if document is None else dict(document["attributes"])

    def update_group_attributes(self, name: str, **attributes: object) -> None:
        """Set attributes of a group inside this one, by one atomic write."""
        self.create_group(name, {**(self.group_attributes(name) or {}), **attributes})

    # Documents

    def make_groups_above(self, name: str) -> None:
        """Make the groups that an array or group is in, unless they are there."""
        parts = name.split("/")[:-1]
        for path in ("/".join(parts[: i + 1]) for i in range(len(parts))):
            data = default_buffer_prototype().buffer.from_bytes(sealed(group_document({}), path, self.id))
            with self.backing.writing():
                sync(self.backing.zarr.set_if_not_exists(_document_key(path), data))

    def _put_document(self, name: str, document: Mapping[str, Any]) -> None:
        self.backing.put(_document_key(name), [sealed(document, name, self.id)])

    def _document(self, name: str) -> dict[str, Any] | None:
        """What the metadata of an array or group says, without the seal; None if there is none. Cost: one small object."""
        data = self.backing.get(_document_key(name))
        if data is None:
            return None
        try:
            return unsealed(parsed(data.tobytes()), name, self.id)
        except ValueError as error:
            raise self._damaged_document(name, str(error)) from error

    def _damaged_document(self, name: str, why: str) -> StoreError:
        return StoreError(f"{self.url}: {_document_key(name)} is damaged: {why}", self.rewriting(name))


def _document_key(name: str) -> str:
    return f"{name}/zarr.json"


def chunk_key(name: str, index: tuple[int, ...]) -> str:
    """The key of a chunk's object: `<name>/c.0.3`."""
    return f"{name}/c.{'.'.join(map(str, index))}"
