"""Moments in the making: sums that grow while the model runs, and count each unit exactly once.

Every process folds its units into sums of its own, its part. A checkpoint writes the whole part into the slot that is not in
force and then, with one atomic write of the part's attributes, puts that slot in force together with the list of units that are
in it. Whatever the moment of a kill, the part holds the old units or the new ones, and says which.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup

SUMS_CHUNK_BYTES = 8 << 20


def pack_sums(sums: Sums) -> NDArray[np.float64]:
    """`[D + 2, D]`: the sums in one block that is written at once. A count is exact in float64 up to 2^53."""
    last = np.zeros_like(sums.sum_x)
    last[0] = sums.count
    return np.concatenate([sums.sum_xxt, sums.sum_x[None], last[None]])


def unpack_sums(packed: NDArray[np.float64]) -> Sums:
    return Sums(packed[:-2], packed[-2], int(packed[-1, 0]))


@dataclass(frozen=True)
class PartialSums:
    """The sums of one process: `parts/<name>/<site>` `[2, T, D + 2, D]` float64, the slot in force and the units in it."""

    arrays: ArrayGroup
    name: str

    @property
    def units(self) -> tuple[int, ...]:
        """The units that are in the sums in force; none before the first checkpoint."""
        exists = self.arrays.has(f"parts/{self.name}")
        return tuple(self._group.attrs.get("units", ())) if exists else ()

    @property
    def _group(self) -> Any:
        return self.arrays.group[f"parts/{self.name}"]

    @property
    def _slot(self) -> int:
        return int(self._group.attrs["slot"])

    def create(self, sites: Iterable[Site], num_steps: int) -> None:
        """Make the arrays. They belong to the part only from its first checkpoint on."""
        self.arrays.delete(f"parts/{self.name}")
        with self.arrays.writing():
            self.arrays.group.create_group(f"parts/{self.name}", attributes={"slot": 0, "units": []})
        for site in sites:
            t, d = site.num_recorded(num_steps), site.dim
            steps = max(1, min(t, SUMS_CHUNK_BYTES // (8 * d * (d + 2))))
            self.arrays.create(f"parts/{self.name}/{site.name}", (2, t, d + 2, d), (1, steps, d + 2, d), "f8", "NaN")

    def read(self, site: Site) -> Iterator[Sums]:
        """(sum_xxT, sum_x, count) of each timestep, from the slot in force; a chunk of timesteps is read at a time."""
        name = f"parts/{self.name}/{site.name}"
        array = self.arrays.array(name)
        steps, slot = array.chunks[1], self._slot
        for chunk in range(-(-array.shape[1] // steps)):
            block = self.arrays.read_chunk(name, (slot, chunk, 0, 0))[0]
            for packed in block[: array.shape[1] - chunk * steps]:
                yield unpack_sums(packed)

    def checkpoint(self, sums: Iterable[tuple[Site, list[NDArray[np.float64]]]], units: Iterable[int]) -> None:
        """Put new sums (one packed block per timestep of each site) in force, together with the units that are in them."""
        slot = 1 - self._slot
        for site, blocks in sums:
            name = f"parts/{self.name}/{site.name}"
            steps = self.arrays.array(name).chunks[1]
            for chunk in range(-(-len(blocks) // steps)):
                values = np.zeros((1, steps, *blocks[0].shape))
                for i, block in enumerate(blocks[chunk * steps : (chunk + 1) * steps]):
                    values[0, i] = block
                self.arrays.write_chunk(name, (slot, chunk, 0, 0), values)
        self.arrays.backing.sync()
        with self.arrays.writing():
            self._group.update_attributes({"slot": slot, "units": sorted(units)})
        self.arrays.backing.sync()


def check_disjoint(parts: Iterable[PartialSums]) -> None:
    """Raise StoreError if a unit is in two parts: its moments would count twice."""
    owner: dict[int, str] = {}
    for part in parts:
        for unit in part.units:
            if unit in owner:
                raise StoreError(
                    f"{part.arrays.url}: unit {unit} is in the parts {owner[unit]} and {part.name}",
                    f"nullbooth collect --force -s {part.arrays.url}",
                )
            owner[unit] = part.name
