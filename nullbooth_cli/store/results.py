"""What the later stages leave in a store: second moments, their decompositions, and where those were cut."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zarr.errors import ContainsArrayError

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.layout import Layout
from nullbooth_cli.store.partial_sums import pack_sums, unpack_sums


@dataclass(frozen=True)
class Decomposition:
    """C = U diag(l) U^T of one second moment, all float64.

    `eigenvalues` `[D]` ascending; `eigenvectors` `[D, D]`, column i belongs to eigenvalue i; `energies` `[2, D]`: u^T C u for
    each eigenvector u, on the collected prompts (about zero, whatever was decomposed) and the held-out ones (NaN without them).
    Eigenvalues below `noise_floor` are round-off.
    """

    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    energies: NDArray[np.float64]
    noise_floor: float


class Cut(NamedTuple):
    """What a threshold made of one decomposition; leakage on the collected prompts, and on the held-out ones (None without)."""

    null_dim: int
    leakage: float
    heldout_leakage: float | None


class Results(ArrayGroup):
    """Moments and projectors of an open store."""

    # Moments

    def create_moments(self, sites: tuple[Site, ...], num_steps: int, layout: Layout) -> None:
        self.delete("moments")
        self.delete("staged")
        blocks = {site: layout.blocks(site, num_steps) for site in sites}
        for site in sites:
            t, d, s = site.num_recorded(num_steps), site.dim, len(blocks[site][0])
            self._create(f"moments/{site.name}/sum_xxT", (t, d, d), (s, d, d), "f8", "NaN")
            self._create(f"moments/{site.name}/sum_x", (t, d), (s, d), "f8", "NaN")
            self._create(f"moments/{site.name}/count", (t,), (s,), "i8", 0)
        self.create_progress("covariance", sum(map(len, blocks.values())))

    def write_moments(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Write the sums of timesteps that share a chunk."""
        name = f"moments/{site.name}"
        for array, values in zip(("sum_xxT", "sum_x", "count"), zip(*sums, strict=True), strict=True):
            self._write_block(f"{name}/{array}", block, np.stack(values))

    def read_moments(self, site: Site, timesteps: Iterable[int]) -> Iterator[Sums]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of each recorded timestep; neighbours of one chunk are read once."""
        name, last = f"moments/{site.name}", -1
        arrays: list[NDArray[Any]] = []
        for t in timesteps:
            number, within = divmod(t, self._array(f"{name}/count").chunks[0])
            if number != last:
                arrays = [
                    self._read_chunk(f"{name}/{array}", (number, *rest))
                    for array, rest in (("sum_xxT", (0, 0)), ("sum_x", (0,)), ("count", ()))
                ]
                last = number
            yield arrays[0][within], arrays[1][within], int(arrays[2][within])

    def read_moment(self, site: Site, timestep: int) -> Sums:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of one recorded timestep."""
        return next(self.read_moments(site, [timestep]))

    def read_counts(self, site: Site) -> NDArray[np.int64]:
        """How many vectors are in each moment, `[T]`, without reading the matrices."""
        name = f"moments/{site.name}/count"
        array = self._array(name)
        chunks = [self._read_chunk(name, (number,)) for number in range(-(-array.shape[0] // array.chunks[0]))]
        return np.concatenate(chunks)[: array.shape[0]]

    def stage_moments(self, site: Site, block: range, sums: Sequence[Sums]) -> None:
        """Put moments that grew beside the ones in force, so that a kill between their chunks can lose neither."""
        name = f"staged/{site.name}"
        if not self._has(name):
            counts = self._array(f"moments/{site.name}/count")
            shape = (counts.shape[0], site.dim + 2, site.dim)
            with contextlib.suppress(ContainsArrayError):  # another process was faster
                self._create(name, shape, (counts.chunks[0], *shape[1:]), "f8", "NaN")
        self._write_block(name, block, np.stack([pack_sums(*of_step) for of_step in sums]))

    def read_staged(self, site: Site, block: range) -> list[Sums]:
        name = f"staged/{site.name}"
        number = block.start // self._array(name).chunks[0]
        return [unpack_sums(packed) for packed in self._read_chunk(name, (number, 0, 0))[: len(block)]]

    def _write_block(self, name: str, block: range, values: NDArray[Any]) -> None:
        """Write the chunk of these places on the first axis, all others whole; it is filled up where the array ends within it."""
        array = self._array(name)
        length = array.chunks[0]
        if len(values) < length:
            values = np.concatenate([values, np.full((length - len(values), *values.shape[1:]), array.fill_value, array.dtype)])
        self._write_chunk(name, (block.start // length, *(0,) * (values.ndim - 1)), values)

    # Projectors

    def create_projectors(self, sites: tuple[Site, ...], num_decompositions: Mapping[str, int]) -> None:
        """Arrays for so many decompositions of each site, by its name."""
        self.delete("projectors")
        for site in sites:
            s, d = num_decompositions[site.name], site.dim
            self._create(f"projectors/{site.name}/eigenvalues", (s, d), (1, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/eigenvectors", (s, d, d), (1, d, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/energies", (s, 2, d), (1, 2, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/noise_floor", (s,), (1,), "f8", "NaN")
            self._create(f"projectors/{site.name}/null_dim", (s,), (1,), "i8", 0)
            self._create(f"projectors/{site.name}/leakage", (s, 2), (1, 2), "f8", "NaN")
        self.create_progress("decomposition", sum(num_decompositions[site.name] for site in sites))

    def num_decompositions(self, site: Site) -> int:
        """How many decompositions of a site there are room for: 1 pooled, or one per timestep."""
        return int(self._array(f"projectors/{site.name}/null_dim").shape[0])

    def write_decomposition(self, site: Site, index: int, found: Decomposition) -> None:
        name = f"projectors/{site.name}"
        self._write_chunk(f"{name}/eigenvalues", (index, 0), found.eigenvalues[None])
        self._write_chunk(f"{name}/eigenvectors", (index, 0, 0), found.eigenvectors[None])
        self._write_chunk(f"{name}/energies", (index, 0, 0), found.energies[None])
        self._write_chunk(f"{name}/noise_floor", (index,), np.array([found.noise_floor]))

    def read_decomposition(self, site: Site, index: int) -> Decomposition:
        return Decomposition(
            self.read_eigenvalues(site, index),
            self.read_eigenvectors(site, index),
            self.read_energies(site, index),
            self.read_noise_floor(site, index),
        )

    def read_eigenvalues(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D]`, ascending."""
        values: NDArray[np.float64] = self._read_chunk(f"projectors/{site.name}/eigenvalues", (index, 0))[0]
        return values

    def read_eigenvectors(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D, D]`, column i belongs to eigenvalue i."""
        vectors: NDArray[np.float64] = self._read_chunk(f"projectors/{site.name}/eigenvectors", (index, 0, 0))[0]
        return vectors

    def read_energies(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[2, D]`: see `Decomposition`."""
        energies: NDArray[np.float64] = self._read_chunk(f"projectors/{site.name}/energies", (index, 0, 0))[0]
        return energies

    def read_noise_floor(self, site: Site, index: int) -> float:
        return float(self._read_chunk(f"projectors/{site.name}/noise_floor", (index,))[0])

    def write_cut(self, site: Site, index: int, cut: Cut) -> None:
        leakages = np.array([[cut.leakage, np.nan if cut.heldout_leakage is None else cut.heldout_leakage]])
        self._write_chunk(f"projectors/{site.name}/null_dim", (index,), np.array([cut.null_dim]))
        self._write_chunk(f"projectors/{site.name}/leakage", (index, 0), leakages)

    def read_cut(self, site: Site, index: int) -> Cut:
        null_dim = int(self._read_chunk(f"projectors/{site.name}/null_dim", (index,))[0])
        collected, heldout = self._read_chunk(f"projectors/{site.name}/leakage", (index, 0))[0].tolist()
        return Cut(null_dim, collected, None if np.isnan(heldout) else heldout)
