"""Features in a store: `features/<site>`, every vector that a site recorded, one chunk for each unit and block of timesteps."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.store.arrays import ArrayGroup, chunk_key
from nullbooth_cli.store.layout import STORED_DTYPES, Layout


class FeatureArrays:
    """The features of an open store. `members` gives (row, prompt) of each prompt in a unit."""

    def __init__(self, arrays: ArrayGroup, members: Callable[[int], list[tuple[int, Prompt]]]) -> None:
        self._arrays, self._members = arrays, members

    def create(self, sites: Iterable[Site], num_steps: int, num_rows: int, layout: Layout) -> None:
        """Remove all features and make every array anew, before any process starts to write. Cost: about 5 ms a site."""
        stored, fill = STORED_DTYPES[layout.dtype]
        self._arrays.delete("features")
        for site in sites if layout.keeps_features else ():
            length = len(layout.blocks(site, num_steps)[0])
            self._arrays.create(
                f"features/{site.name}",
                shape=(site.num_recorded(num_steps), num_rows, site.num_tokens, site.dim),
                chunks=(length, layout.batch_size, site.num_tokens, site.dim),
                dtype=stored,
                fill=fill,
                attributes={"torch_dtype": layout.dtype},
                compressed=layout.compression is not None,
            )

    def extend(self, sites: Iterable[Site], num_rows: int) -> None:
        """Make room for more rows."""
        for site in sites:
            self._arrays.resize(f"features/{site.name}", num_rows, axis=1)

    def write(self, site: Site, block: range, rows: Sequence[int], values: NDArray[Any]) -> None:
        """Write one chunk: `[S, b, L, D]` in the stored dtype, all rows of one unit. Rows without a prompt are NaN."""
        array = self._arrays.array(f"features/{site.name}")
        length, batch = array.chunks[:2]
        unit = rows[0] // batch
        if values.shape[:2] != (length, batch):
            whole = np.full(array.chunks, array.fill, array.dtype)
            whole[: len(block), [row - unit * batch for row in rows]] = values
            values = whole
        self._arrays.write_chunk(f"features/{site.name}", (block.start // length, unit, 0, 0), values)

    def read(self, site: Site, block: range, unit: int) -> NDArray[Any]:
        """The vectors of a unit's prompts, `[S, b, L, D]` in the stored dtype (bfloat16 as its uint16 bits)."""
        name = f"features/{site.name}"
        length, batch = self._arrays.array(name).chunks[:2]
        slots = [row - unit * batch for row, _ in self._members(unit)]
        values = self._arrays.read_chunk(name, (block.start // length, unit, 0, 0))[: len(block)]
        chosen: NDArray[Any] = values if len(slots) == batch else values[:, slots]
        return chosen

    def chunk_nbytes(self, site: Site) -> int:
        """Bytes of one chunk of a site, before compression."""
        array = self._arrays.array(f"features/{site.name}")
        return int(np.prod(array.chunks)) * array.dtype.itemsize

    def remove(self, site: Site, block_number: int, units: Iterable[int]) -> None:
        """Remove the chunks of units in one block of timesteps, by its number."""
        for unit in units:
            self._arrays.backing.delete(chunk_key(f"features/{site.name}", (block_number, unit, 0, 0)))
