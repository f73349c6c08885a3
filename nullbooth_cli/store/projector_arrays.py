"""Decompositions of second moments in a store, and their cuts: `projectors/<site>`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.progress_cells import ProgressCells


@dataclass(frozen=True)
class Decomposition:
    """C = U diag(l) U^T of one second moment, all float64.

    `eigenvalues` `[D]` ascending; `eigenvectors` `[D, D]`, column i belongs to eigenvalue i; `energies` `[2, D]`: u^T C u for
    each eigenvector u, on the collected prompts (about zero, whatever was decomposed) and the held-out ones (NaN without them).
    Eigenvalues below `noise_floor` are round-off.

    Of a moment that is kept as a factor of R rows there are only the last R eigenvectors, `[D, R]`. The other eigenvalues are 0,
    each is less than that of C by at most `noise_floor`, and the energy that no eigenvector has is spread over the other D - R.
    """

    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    energies: NDArray[np.float64]
    noise_floor: float


class Cut(NamedTuple):
    """The cut of one decomposition by a threshold: its null_dim, and the leakage on collected and held-out prompts (or None)."""

    null_dim: int
    leakage: float
    heldout_leakage: float | None


class TaskSpectrum(NamedTuple):
    """What a hard task met and left in one decomposition, `[D]` float64 each, along eigenvectors of ascending eigenvalues.

    Of the moment before the task, with the tasks before it: its `eigenvalues`, and the energies of the `collected` vectors (about
    zero), of the `heldout` ones (NaN without them) and of the `task`'s own. `task_after` are those of the task along the
    eigenvectors of the whole decomposition, after all tasks.
    """

    eigenvalues: NDArray[np.float64]
    collected: NDArray[np.float64]
    heldout: NDArray[np.float64]
    task: NDArray[np.float64]
    task_after: NDArray[np.float64]

    @property
    def energies(self) -> NDArray[np.float64]:
        """`[2, D]`, as those of a `Decomposition`."""
        return np.stack([self.collected, self.heldout])


class ProjectorArrays:
    """The projectors of an open store. `index` is 0 for a pooled decomposition, or the recorded timestep."""

    def __init__(self, arrays: ArrayGroup, progress: ProgressCells) -> None:
        self._arrays, self._progress = arrays, progress

    def create(
        self,
        sites: Sequence[Site],
        num_decompositions: Mapping[str, int],
        rows: Callable[[Site], int] = lambda site: site.dim,
        *,
        num_tasks: int = 0,
    ) -> None:
        """Remove all projectors and the progress of `decomposition`, and make the arrays of every site anew.

        `num_decompositions` gives their number for each site, by its name; `rows` those of its moments (`MomentArrays.rows`).
        Only with tasks is there an array for them. Cost: about 10 ms a site.
        """
        self._arrays.delete("projectors")
        for site in sites:
            name, r, d = f"projectors/{site.name}", num_decompositions[site.name], site.dim
            self._arrays.create(f"{name}/eigenvalues", shape=(r, d), chunks=(1, d), dtype="f8", fill="NaN")
            vectors = d, rows(site)
            self._arrays.create(f"{name}/eigenvectors", shape=(r, *vectors), chunks=(1, *vectors), dtype="f8", fill="NaN")
            self._arrays.create(f"{name}/energies", shape=(r, 2, d), chunks=(1, 2, d), dtype="f8", fill="NaN")
            self._arrays.create(f"{name}/noise_floor", shape=(r,), chunks=(1,), dtype="f8", fill="NaN")
            self._arrays.create(f"{name}/null_dim", shape=(r,), chunks=(1,), dtype="i8", fill=0)
            self._arrays.create(f"{name}/leakage", shape=(r, 2), chunks=(1, 2), dtype="f8", fill="NaN")
            if num_tasks:
                shape = num_tasks, len(TaskSpectrum._fields), d
                self._arrays.create(f"{name}/tasks", shape=(r, *shape), chunks=(1, *shape), dtype="f8", fill="NaN")
        self._progress.create("decomposition", sum(num_decompositions[site.name] for site in sites))

    def num_decompositions(self, site: Site) -> int:
        """The number of decompositions that a site has room for: 1 if pooled, else one per timestep."""
        return int(self._arrays.array(f"projectors/{site.name}/null_dim").shape[0])

    def num_dropped(self, site: Site) -> int:
        """The number of smallest eigenvalues without an eigenvector: 0, or D - R for a factor. Cost: one small object."""
        return site.dim - int(self._arrays.array(f"projectors/{site.name}/eigenvectors").shape[2])

    def write_decomposition(self, site: Site, index: int, found: Decomposition) -> None:
        """Write one decomposition. Cost: 8 D^2 bytes."""
        name = f"projectors/{site.name}"
        self._arrays.write_chunk(f"{name}/eigenvalues", (index, 0), found.eigenvalues[None])
        self._arrays.write_chunk(f"{name}/eigenvectors", (index, 0, 0), found.eigenvectors[None])
        self._arrays.write_chunk(f"{name}/energies", (index, 0, 0), found.energies[None])
        self._arrays.write_chunk(f"{name}/noise_floor", (index,), np.array([found.noise_floor]))

    def read_decomposition(self, site: Site, index: int) -> Decomposition:
        """One whole decomposition. Cost: 8 D^2 bytes."""
        return Decomposition(
            eigenvalues=self.read_eigenvalues(site, index),
            eigenvectors=self.read_eigenvectors(site, index),
            energies=self.read_energies(site, index),
            noise_floor=self.read_noise_floor(site, index),
        )

    def read_eigenvalues(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D]`, ascending."""
        values: NDArray[np.float64] = self._arrays.read_chunk(f"projectors/{site.name}/eigenvalues", (index, 0))[0]
        return values

    def read_eigenvectors(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D, D]`, column i belongs to eigenvalue i; of a factor, the last R columns."""
        vectors: NDArray[np.float64] = self._arrays.read_chunk(f"projectors/{site.name}/eigenvectors", (index, 0, 0))[0]
        return vectors

    def read_energies(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[2, D]`: see `Decomposition`."""
        energies: NDArray[np.float64] = self._arrays.read_chunk(f"projectors/{site.name}/energies", (index, 0, 0))[0]
        return energies

    def read_noise_floor(self, site: Site, index: int) -> float:
        """The eigenvalue below which there is only round-off."""
        return float(self._arrays.read_chunk(f"projectors/{site.name}/noise_floor", (index,))[0])

    def write_tasks(self, site: Site, index: int, tasks: Sequence[TaskSpectrum]) -> None:
        """Write the spectra of all hard tasks, in their order."""
        self._arrays.write_chunk(f"projectors/{site.name}/tasks", (index, 0, 0, 0), np.array([tasks]))

    def read_tasks(self, site: Site, index: int) -> list[TaskSpectrum]:
        """Those spectra. Raises StoreError if there are none. Cost: 40 D bytes for each task."""
        values = self._arrays.read_chunk(f"projectors/{site.name}/tasks", (index, 0, 0, 0))[0]
        return [TaskSpectrum(*of_task) for of_task in values]

    def write_cut(self, site: Site, index: int, cut: Cut) -> None:
        """Write the cut of one decomposition."""
        leakages = np.array([[cut.leakage, np.nan if cut.heldout_leakage is None else cut.heldout_leakage]])
        self._arrays.write_chunk(f"projectors/{site.name}/null_dim", (index,), np.array([cut.null_dim]))
        self._arrays.write_chunk(f"projectors/{site.name}/leakage", (index, 0), leakages)

    def read_cut(self, site: Site, index: int) -> Cut:
        """The cut of one decomposition. Cost: two small objects."""
        null_dim = int(self._arrays.read_chunk(f"projectors/{site.name}/null_dim", (index,))[0])
        collected, heldout = self._arrays.read_chunk(f"projectors/{site.name}/leakage", (index, 0))[0].tolist()
        return Cut(null_dim, collected, None if np.isnan(heldout) else heldout)
