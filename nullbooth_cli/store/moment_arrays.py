"""Second moments in a store: `moments/<site>`, and `staged/<site>` while prompts are added to them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.formatting import counted
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.layout import Layout, covariance_units
from nullbooth_cli.store.partial_sums import PartialSums, check_disjoint, pack_sums, unpack_sums
from nullbooth_cli.store.progress_cells import ProgressCells

STAGED = 1 << 31  # this bit of a cell of covariance: the moments of the other bits' units are staged, not yet in force


class MomentArrays:
    """The moments of an open store. T is 1 for a site that no timestep changes; S timesteps share a chunk."""

    def __init__(self, arrays: ArrayGroup, progress: ProgressCells) -> None:
        self._arrays, self._progress = arrays, progress

    def create(self, sites: Sequence[Site], num_steps: int, layout: Layout) -> None:
        """Remove all moments and their progress, and make the arrays of every site anew. Cost: about 5 ms a site."""
        self._arrays.delete("moments")
        self._arrays.delete("staged")
        for site in sites:
            t, d, s = site.num_recorded(num_steps), site.dim, len(layout.blocks(site, num_steps)[0])
            name = f"moments/{site.name}"
            self._arrays.create(f"{name}/sum_xxT", shape=(t, d, d), chunks=(s, d, d), dtype="f8", fill="NaN")
            self._arrays.create(f"{name}/sum_x", shape=(t, d), chunks=(s, d), dtype="f8", fill="NaN")
            self._arrays.create(f"{name}/count", shape=(t,), chunks=(s,), dtype="i8", fill=0)
        self._progress.create("covariance", len(covariance_units(sites, num_steps, layout)))

    def write(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Write the sums of the timesteps that share a chunk, one for each timestep of the block."""
        name = f"moments/{site.name}"
        for array, values in zip(("sum_xxT", "sum_x", "count"), zip(*sums, strict=True), strict=True):
            self._write_block(f"{name}/{array}", block, np.stack(values))

    def read(self, site: Site, timesteps: Iterable[int]) -> Iterator[Sums]:
        """The sums of each recorded timestep, in this order. Cost: 8 D^2 bytes each; neighbours of one chunk are read once."""
        name, last = f"moments/{site.name}", -1
        arrays: list[NDArray[Any]] = []
        for t in timesteps:
            number, within = divmod(t, self._arrays.array(f"{name}/count").chunks[0])
            if number != last:
                arrays = [
                    self._arrays.read_chunk(f"{name}/{array}", (number, *rest))
                    for array, rest in (("sum_xxT", (0, 0)), ("sum_x", (0,)), ("count", ()))
                ]
                last = number
            yield Sums(arrays[0][within], arrays[1][within], int(arrays[2][within]))

    def read_one(self, site: Site, timestep: int) -> Sums:
        """The sums of one recorded timestep. Cost: 8 S D^2 bytes read."""
        return next(self.read(site, [timestep]))

    def counts(self, site: Site) -> NDArray[np.int64]:
        """How many vectors are in each moment, `[T]`, without reading the matrices."""
        name = f"moments/{site.name}/count"
        array = self._arrays.array(name)
        chunks = [self._arrays.read_chunk(name, (number,)) for number in range(-(-array.shape[0] // array.chunks[0]))]
        return np.concatenate(chunks)[: array.shape[0]]

    def stage(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Write grown moments beside those in force, so that a kill between two chunks loses neither."""
        name = f"staged/{site.name}"
        if self._arrays.find(name) is None:
            counts = self._arrays.array(f"moments/{site.name}/count")
            shape = (counts.shape[0], site.dim + 2, site.dim)
            chunks = (counts.chunks[0], *shape[1:])
            # Several processes may come here at once: with an identity of its own each would disown the others' chunks.
            self._arrays.create(name, shape=shape, chunks=chunks, dtype="f8", fill="NaN", identity=f"staged-{counts.id}")
        self._write_block(name, block, np.stack([pack_sums(of_step) for of_step in sums]))

    def read_staged(self, site: Site, block: range) -> list[Sums]:
        """The sums that `stage` wrote, one for each timestep of the block."""
        name = f"staged/{site.name}"
        number = block.start // self._arrays.array(name).chunks[0]
        return [unpack_sums(packed) for packed in self._arrays.read_chunk(name, (number, 0, 0))[: len(block)]]

    def _write_block(self, name: str, block: range, values: NDArray[Any]) -> None:
        """Write one chunk along the first axis; it is filled up where the array ends inside it."""
        array = self._arrays.array(name)
        length = array.chunks[0]
        if len(values) < length:
            values = np.concatenate([values, np.full((length - len(values), *values.shape[1:]), array.fill, array.dtype)])
        self._arrays.write_chunk(name, (block.start // length, *(0,) * (values.ndim - 1)), values)

    def partial_sums(self, name: str) -> PartialSums:
        """The partial sums of this name, which need not be there yet."""
        return PartialSums(self._arrays, name)

    def all_partial_sums(self) -> list[PartialSums]:
        """The partial sums of every process that started some."""
        return [self.partial_sums(name) for name in self._arrays.children("parts")]

    def not_folded(self, units: Iterable[int]) -> list[int]:
        """Those of the units that are in no partial sums. Cost: one small object for each process."""
        return sorted(set(units) - {unit for part in self.all_partial_sums() for unit in part.units})

    def check_counted_once(self, units: Iterable[int]) -> None:
        """Raise StoreError if one of these units is in no partial sums, or any unit is in two."""
        check_disjoint(self.all_partial_sums())
        if missing := self.not_folded(units):
            raise StoreError(
                f"{self._arrays.url}: unit {missing[0]} of the collection is missing in the partial sums "
                f"({counted(len(missing), 'unit')} in all)",
                Rerun("collect", repair=True, store=self._arrays.place),
            )
