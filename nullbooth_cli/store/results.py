"""What the later stages leave in a store: second moments, their decompositions, and where those were cut."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zarr.errors import ContainsArrayError

from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.layout import Site
from nullbooth_cli.store.parts import pack_sums, unpack_sums


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

    def create_moments(self, sites: tuple[Site, ...], num_steps: int) -> None:
        self.delete("moments")
        self.delete("staged")
        for site in sites:
            t, d = site.num_recorded(num_steps), site.dim
            self._create(f"moments/{site.name}/sum_xxT", (t, d, d), (1, d, d), "f8", "NaN")
            self._create(f"moments/{site.name}/sum_x", (t, d), (1, d), "f8", "NaN")
            self._create(f"moments/{site.name}/count", (t,), (1,), "i8", 0)
        self.create_progress("covariance", sum(site.num_recorded(num_steps) for site in sites))

    def write_moment(self, site: Site, step_index: int, sum_xxt: NDArray[Any], sum_x: NDArray[Any], count: int) -> None:
        name = f"moments/{site.name}"
        self._write_chunk(f"{name}/sum_xxT", (step_index, 0, 0), sum_xxt[None])
        self._write_chunk(f"{name}/sum_x", (step_index, 0), sum_x[None])
        self._write_chunk(f"{name}/count", (step_index,), np.array([count]))

    def read_moment(self, site: Site, step_index: int) -> tuple[NDArray[Any], NDArray[Any], int]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of one timestep."""
        name = f"moments/{site.name}"
        sum_xxt = self._read_chunk(f"{name}/sum_xxT", (step_index, 0, 0))[0]
        return sum_xxt, self._read_chunk(f"{name}/sum_x", (step_index, 0))[0], self.read_count(site, step_index)

    def read_count(self, site: Site, step_index: int) -> int:
        """How many vectors are in a moment, without reading its matrix."""
        return int(self._read_chunk(f"moments/{site.name}/count", (step_index,))[0])

    def stage_moment(self, site: Site, step_index: int, sum_xxt: NDArray[Any], sum_x: NDArray[Any], count: int) -> None:
        """Put a moment that grew beside the one in force, so that a kill between its chunks can lose neither."""
        name = f"staged/{site.name}"
        if not self._has(name):
            shape = (self._array(f"moments/{site.name}/count").shape[0], site.dim + 2, site.dim)
            with contextlib.suppress(ContainsArrayError):  # another process was faster
                self._create(name, shape, (1, *shape[1:]), "f8", "NaN")
        self._write_chunk(name, (step_index, 0, 0), pack_sums(sum_xxt, sum_x, count)[None])

    def read_staged(self, site: Site, step_index: int) -> tuple[NDArray[Any], NDArray[Any], int]:
        return unpack_sums(self._read_chunk(f"staged/{site.name}", (step_index, 0, 0))[0])

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
