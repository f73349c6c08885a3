"""Decompositions of second moments in a store, and where they were cut: `projectors/<site>`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.store.arrays import ArrayGroup


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


class ProjectorArrays:
    """The projectors of an open store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self.arrays = arrays

    def create(self, sites: tuple[Site, ...], num_decompositions: Mapping[str, int]) -> None:
        """Arrays for so many decompositions of each site, by its name."""
        self.arrays.delete("projectors")
        for site in sites:
            s, d = num_decompositions[site.name], site.dim
            self.arrays.create(f"projectors/{site.name}/eigenvalues", (s, d), (1, d), "f8", "NaN")
            self.arrays.create(f"projectors/{site.name}/eigenvectors", (s, d, d), (1, d, d), "f8", "NaN")
            self.arrays.create(f"projectors/{site.name}/energies", (s, 2, d), (1, 2, d), "f8", "NaN")
            self.arrays.create(f"projectors/{site.name}/noise_floor", (s,), (1,), "f8", "NaN")
            self.arrays.create(f"projectors/{site.name}/null_dim", (s,), (1,), "i8", 0)
            self.arrays.create(f"projectors/{site.name}/leakage", (s, 2), (1, 2), "f8", "NaN")

    def num_decompositions(self, site: Site) -> int:
        """How many decompositions of a site there are room for: 1 pooled, or one per timestep."""
        return int(self.arrays.array(f"projectors/{site.name}/null_dim").shape[0])

    def write_decomposition(self, site: Site, index: int, found: Decomposition) -> None:
        name = f"projectors/{site.name}"
        self.arrays.write_chunk(f"{name}/eigenvalues", (index, 0), found.eigenvalues[None])
        self.arrays.write_chunk(f"{name}/eigenvectors", (index, 0, 0), found.eigenvectors[None])
        self.arrays.write_chunk(f"{name}/energies", (index, 0, 0), found.energies[None])
        self.arrays.write_chunk(f"{name}/noise_floor", (index,), np.array([found.noise_floor]))

    def read_decomposition(self, site: Site, index: int) -> Decomposition:
        return Decomposition(
            self.read_eigenvalues(site, index),
            self.read_eigenvectors(site, index),
            self.read_energies(site, index),
            self.read_noise_floor(site, index),
        )

    def read_eigenvalues(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D]`, ascending."""
        values: NDArray[np.float64] = self.arrays.read_chunk(f"projectors/{site.name}/eigenvalues", (index, 0))[0]
        return values

    def read_eigenvectors(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D, D]`, column i belongs to eigenvalue i."""
        vectors: NDArray[np.float64] = self.arrays.read_chunk(f"projectors/{site.name}/eigenvectors", (index, 0, 0))[0]
        return vectors

    def read_energies(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[2, D]`: see `Decomposition`."""
        energies: NDArray[np.float64] = self.arrays.read_chunk(f"projectors/{site.name}/energies", (index, 0, 0))[0]
        return energies

    def read_noise_floor(self, site: Site, index: int) -> float:
        return float(self.arrays.read_chunk(f"projectors/{site.name}/noise_floor", (index,))[0])

    def write_cut(self, site: Site, index: int, cut: Cut) -> None:
        leakages = np.array([[cut.leakage, np.nan if cut.heldout_leakage is None else cut.heldout_leakage]])
        self.arrays.write_chunk(f"projectors/{site.name}/null_dim", (index,), np.array([cut.null_dim]))
        self.arrays.write_chunk(f"projectors/{site.name}/leakage", (index, 0), leakages)

    def read_cut(self, site: Site, index: int) -> Cut:
        null_dim = int(self.arrays.read_chunk(f"projectors/{site.name}/null_dim", (index,))[0])
        collected, heldout = self.arrays.read_chunk(f"projectors/{site.name}/leakage", (index, 0))[0].tolist()
        return Cut(null_dim, collected, None if np.isnan(heldout) else heldout)
