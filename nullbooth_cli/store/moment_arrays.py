"""Second moments in a store: `moments/<site>`, and `staged/<site>` while prompts are added to them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import WHOLE, AnySums, FactoredSums, Factoring, Site, Sums
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.formatting import counted
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.layout import Layout, covariance_units
from nullbooth_cli.store.partial_sums import PartialSums, check_disjoint, pack_sums, unpack_sums
from nullbooth_cli.store.progress_cells import ProgressCells

STAGED = 1 << 31  # this bit of a cell of covariance: the moments of the other bits' units are staged, not yet in force


def _array_names(is_factored: bool) -> tuple[str, ...]:
    """The arrays of a site, in the order of the fields of its sums."""
    return ("factor", "sum_x", "count", "trace", "delta") if is_factored else ("sum_xxT", "sum_x", "count")


def chunk_index(array: str, number: int) -> tuple[int, ...]:
    """The chunk of an array with the timesteps of the `number`-th block: only the first axis is divided."""
    return (number, *(0,) * {"sum_xxT": 2, "factor": 2, "sum_x": 1}.get(array, 0))


class MomentArrays:
    """The moments of an open store. T is 1 for a site that no timestep changes; S timesteps share a chunk."""

    def __init__(self, arrays: ArrayGroup, progress: ProgressCells) -> None:
        self._arrays, self._progress = arrays, progress

    def create(self, sites: Sequence[Site], num_steps: int, layout: Layout, factoring: Factoring = WHOLE) -> None:
        """Remove all moments and their progress, and make the arrays of every site anew. Cost: about 5 ms a site."""
        self._arrays.delete("moments")
        self._arrays.delete("staged")
        for site in sites:
            t, d, s = site.num_recorded(num_steps), site.dim, len(layout.blocks(site, num_steps)[0])
            rows = factoring.rows(d)
            for name in _array_names(rows < d):
                shape = {"sum_xxT": (d, d), "factor": (rows, d), "sum_x": (d,)}.get(name, ())
                dtype, fill = ("i8", 0) if name == "count" else ("f8", "NaN")
                path = f"moments/{site.name}/{name}"
                self._arrays.create(path, shape=(t, *shape), chunks=(s, *shape), dtype=dtype, fill=fill)
        self._progress.create("covariance", len(covariance_units(sites, num_steps, layout)))

    def rows(self, site: Site) -> int:
        """The rows of what is stored for the sum of x x^T of a site: D, or those of a factor. Cost: nothing is read."""
        return Factoring.recorded(self._arrays.attribute("records").get("covariance")).rows(site.dim)

    def array_names(self, site: Site) -> tuple[str, ...]:
        """The arrays of a site, each with a chunk of the same number for the same timesteps. Cost: nothing is read."""
        return _array_names(self.rows(site) < site.dim)

    def write(self, site: Site, block: range, sums: Sequence[AnySums]) -> None:
        """Write the sums of the timesteps that share a chunk, one for each timestep of the block."""
        names = _array_names(isinstance(sums[0], FactoredSums))
        for array, values in zip(names, zip(*sums, strict=True), strict=True):
            self._write_block(f"moments/{site.name}/{array}", block, np.stack(values))

    def read(self, site: Site, timesteps: Iterable[int]) -> Iterator[AnySums]:
        """The sums of each recorded timestep, in this order; neighbours of one chunk are read once.

        Cost: 8 D^2 bytes each, 8 R D for a factor.
        """
        name, last = f"moments/{site.name}", -1
        names, arrays = self.array_names(site), list[NDArray[Any]]()
        for t in timesteps:
            number, within = divmod(t, self._arrays.array(f"{name}/count").chunks[0])
            if number != last:
                arrays = [self._arrays.read_chunk(f"{name}/{array}", chunk_index(array, number)) for array in names]
                last = number
            matrix, sum_x, count, *bounds = (values[within] for values in arrays)
            yield FactoredSums(matrix, sum_x, int(count), *map(float, bounds)) if bounds else Sums(matrix, sum_x, int(count))

    def read_one(self, site: Site, timestep: int) -> AnySums:
        """The sums of one recorded timestep. Cost: 8 S D^2 bytes read."""
        return next(self.read(site, [timestep]))

    def counts(self, site: Site) -> NDArray[np.int64]:
        """How many vectors are in each moment, `[T]`, without reading the matrices."""
        name = f"moments/{site.name}/count"
        array = self._arrays.array(name)
        chunks = [self._arrays.read_chunk(name, (number,)) for number in range(-(-array.shape[0] // array.chunks[0]))]
        return np.concatenate(chunks)[: array.shape[0]]

    def stage(self, site: Site, block: range, sums: Sequence[AnySums]) -> None:
        """Write grown moments beside those in force, so that a kill between two chunks loses neither."""
        name = f"staged/{site.name}"
        if self._arrays.find(name) is None:
            counts = self._arrays.array(f"moments/{site.name}/count")
            shape = (counts.shape[0], self.rows(site) + 2, site.dim)
            chunks = (counts.chunks[0], *shape[1:])
            # Several processes may come here at once: with an identity of its own each would disown the others' chunks.
            self._arrays.create(name, shape=shape, chunks=chunks, dtype="f8", fill="NaN", identity=f"staged-{counts.id}")
        self._write_block(name, block, np.stack([pack_sums(of_step) for of_step in sums]))

    def read_staged(self, site: Site, block: range) -> list[AnySums]:
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
