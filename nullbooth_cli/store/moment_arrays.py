"""Second moments in a store: `moments/<site>`, and `parts` and `staged` while they are in the making."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.errors import ContainsArrayError

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.layout import Layout
from nullbooth_cli.store.partial_sums import PartialSums, pack_sums, unpack_sums


class MomentArrays:
    """The moments of an open store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self.arrays = arrays

    def create(self, sites: tuple[Site, ...], num_steps: int, layout: Layout) -> None:
        self.arrays.delete("moments")
        self.arrays.delete("staged")
        blocks = {site: layout.blocks(site, num_steps) for site in sites}
        for site in sites:
            t, d, s = site.num_recorded(num_steps), site.dim, len(blocks[site][0])
            self.arrays.create(f"moments/{site.name}/sum_xxT", (t, d, d), (s, d, d), "f8", "NaN")
            self.arrays.create(f"moments/{site.name}/sum_x", (t, d), (s, d), "f8", "NaN")
            self.arrays.create(f"moments/{site.name}/count", (t,), (s,), "i8", 0)

    def write(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Write the sums of timesteps that share a chunk."""
        name = f"moments/{site.name}"
        for array, values in zip(("sum_xxT", "sum_x", "count"), zip(*sums, strict=True), strict=True):
            self._write_block(f"{name}/{array}", block, np.stack(values))

    def read(self, site: Site, timesteps: Iterable[int]) -> Iterator[Sums]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of each recorded timestep; neighbours of one chunk are read once."""
        name, last = f"moments/{site.name}", -1
        arrays: list[NDArray[Any]] = []
        for t in timesteps:
            number, within = divmod(t, self.arrays.array(f"{name}/count").chunks[0])
            if number != last:
                arrays = [
                    self.arrays.read_chunk(f"{name}/{array}", (number, *rest))
                    for array, rest in (("sum_xxT", (0, 0)), ("sum_x", (0,)), ("count", ()))
                ]
                last = number
            yield Sums(arrays[0][within], arrays[1][within], int(arrays[2][within]))

    def read_one(self, site: Site, timestep: int) -> Sums:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of one recorded timestep."""
        return next(self.read(site, [timestep]))

    def counts(self, site: Site) -> NDArray[np.int64]:
        """How many vectors are in each moment, `[T]`, without reading the matrices."""
        name = f"moments/{site.name}/count"
        array = self.arrays.array(name)
        chunks = [self.arrays.read_chunk(name, (number,)) for number in range(-(-array.shape[0] // array.chunks[0]))]
        return np.concatenate(chunks)[: array.shape[0]]

    def stage(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Put moments that grew beside the ones in force, so that a kill between their chunks can lose neither."""
        name = f"staged/{site.name}"
        if not self.arrays.has(name):
            counts = self.arrays.array(f"moments/{site.name}/count")
            shape = (counts.shape[0], site.dim + 2, site.dim)
            with contextlib.suppress(ContainsArrayError):  # another process was faster
                self.arrays.create(name, shape, (counts.chunks[0], *shape[1:]), "f8", "NaN")
        self._write_block(name, block, np.stack([pack_sums(of_step) for of_step in sums]))

    def read_staged(self, site: Site, block: range) -> list[Sums]:
        name = f"staged/{site.name}"
        number = block.start // self.arrays.array(name).chunks[0]
        return [unpack_sums(packed) for packed in self.arrays.read_chunk(name, (number, 0, 0))[: len(block)]]

    def _write_block(self, name: str, block: range, values: NDArray[Any]) -> None:
        """Write the chunk of these places on the first axis, all others whole; it is filled up where the array ends within it."""
        array = self.arrays.array(name)
        length = array.chunks[0]
        if len(values) < length:
            values = np.concatenate([values, np.full((length - len(values), *values.shape[1:]), array.fill_value, array.dtype)])
        self.arrays.write_chunk(name, (block.start // length, *(0,) * (values.ndim - 1)), values)

    def part(self, name: str) -> PartialSums:
        """The sums of one process, which need not be there yet."""
        return PartialSums(self.arrays, name)

    def parts(self) -> list[PartialSums]:
        """The sums that some process has started."""
        return [self.part(name) for name in self.arrays.children("parts")]
