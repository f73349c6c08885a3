"""Sums that grow while the model runs, and count each unit exactly once: `parts/<name>/<site>`.

Every process folds its units into partial sums of its own. A checkpoint writes all of them into the slot that is not in force.
Then one atomic write of their attributes puts that slot in force, together with the list of its units. Whenever a kill comes, the
partial sums have the old units or the new ones, and their attributes list them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import WHOLE, AnySums, FactoredSums, Factoring, Site, Sums
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store.arrays import ArrayGroup

SUMS_CHUNK_BYTES = 8 << 20


def pack_sums(sums: AnySums) -> NDArray[np.float64]:
    """`[R + 2, D]`: the sums in one block that is written at once; R is D, or fewer for a factor. A count is exact up to 2^53."""
    last = np.zeros_like(sums.sum_x)
    if isinstance(sums, Sums):
        last[0] = sums.count
        return np.concatenate([sums.sum_xxt, sums.sum_x[None], last[None]])
    last[:3] = sums.count, sums.trace, sums.delta
    return np.concatenate([sums.factor, sums.sum_x[None], last[None]])


def unpack_sums(packed: NDArray[np.float64]) -> AnySums:
    """The inverse of `pack_sums`; the arrays are views."""
    matrix, sum_x, last = packed[:-2], packed[-2], packed[-1]
    if len(matrix) == matrix.shape[1]:
        return Sums(matrix, sum_x, int(last[0]))
    return FactoredSums(matrix, sum_x, int(last[0]), trace=float(last[1]), delta=float(last[2]))


@dataclass(frozen=True)
class PartialSums:
    """The sums of one process: `[2, T, R + 2, D]` float64 of each site, the slot in force, and the units that are in it.

    R is D, or the rows of a factor.
    """

    arrays: ArrayGroup
    name: str

    @property
    def units(self) -> tuple[int, ...]:
        """The units that are in the sums in force; none before the first checkpoint. Cost: one small object."""
        return tuple((self.arrays.group_attributes(self._path) or {}).get("units", ()))

    @property
    def slot(self) -> int:
        """The slot in force, 0 or 1. Raises StoreError if there are no such partial sums. Cost: one small object."""
        attributes = self.arrays.group_attributes(self._path)
        if attributes is None:
            raise StoreError(
                f"{self.arrays.url} has no partial sums {self.name}", Rerun("collect", repair=True, store=self.arrays.place)
            )
        return int(attributes["slot"])

    @property
    def _path(self) -> str:
        return f"parts/{self.name}"

    def create(self, sites: Iterable[Site], num_steps: int, factoring: Factoring = WHOLE) -> None:
        """Make the arrays, instead of earlier ones. They have no units before the first checkpoint."""
        self.arrays.delete(self._path)
        self.arrays.create_group(self._path, {"slot": 0, "units": []})
        for site in sites:
            t, d = site.num_recorded(num_steps), site.dim
            block = factoring.rows(d) + 2, d
            steps = max(1, min(t, SUMS_CHUNK_BYTES // (8 * block[0] * d)))
            self.arrays.create(
                f"{self._path}/{site.name}", shape=(2, t, *block), chunks=(1, steps, *block), dtype="f8", fill="NaN"
            )

    def read(self, site: Site) -> Iterator[AnySums]:
        """The sums of each timestep, from the slot in force. Memory: one chunk of timesteps."""
        name = f"{self._path}/{site.name}"
        slot = self.slot
        for chunk, block in enumerate(self.blocks(site)):
            for packed in self.arrays.read_chunk(name, (slot, chunk, 0, 0))[0][: len(block)]:
                yield unpack_sums(packed)

    def blocks(self, site: Site) -> list[range]:
        """The timesteps of a site that share a chunk."""
        array = self.arrays.array(f"{self._path}/{site.name}")
        total, length = array.shape[1], array.chunks[1]
        return [range(start, min(start + length, total)) for start in range(0, total, length)]

    @contextmanager
    def replaced(self, units: Iterable[int]) -> Iterator[Callable[[Site, range, NDArray[np.float64]], None]]:
        """Put new sums in force at the end, together with the units that are in them; nothing after an error.

        It yields a function that writes one of `blocks`, `[S, R + 2, D]` as `pack_sums` packs each timestep, from any thread. All
        blocks of all sites have to be written: one that is left out keeps the sums of two checkpoints ago.
        """
        slot = 1 - self.slot

        def write(site: Site, block: range, packed: NDArray[np.float64]) -> None:
            if len(packed) != len(block):
                raise ValueError(f"{len(packed)} timesteps for a block of {len(block)}")
            name = f"{self._path}/{site.name}"
            length = self.arrays.array(name).chunks[1]
            if len(packed) < length:
                packed = np.concatenate([packed, np.zeros((length - len(packed), *packed.shape[1:]))])
            self.arrays.write_chunk(name, (slot, block.start // length, 0, 0), packed[None])

        yield write
        self.arrays.backing.sync()
        self.arrays.update_group_attributes(self._path, slot=slot, units=sorted(units))
        self.arrays.backing.sync()

    def checkpoint(self, sums: Iterable[tuple[Site, list[NDArray[np.float64]]]], units: Iterable[int]) -> None:
        """Put new sums in force (for each site one packed block per timestep), together with the units that are in them."""
        with self.replaced(units) as write:
            for site, of_steps in sums:
                for block in self.blocks(site):
                    write(site, block, np.stack(of_steps[block.start : block.stop]))


def check_disjoint(parts: Iterable[PartialSums]) -> None:
    """Raise StoreError if a unit is in two partial sums: its moments would count twice."""
    owner: dict[int, str] = {}
    for part in parts:
        for unit in part.units:
            if unit in owner:
                raise StoreError(
                    f"{part.arrays.url}: unit {unit} is in the partial sums {owner[unit]} and {part.name}",
                    Rerun("collect", force=True, store=part.arrays.place),
                )
            owner[unit] = part.name
