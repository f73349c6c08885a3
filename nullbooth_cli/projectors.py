"""Stage project: decomposes second moments and cuts their spectrum into what is known and what is null.

    C = U diag(l) U^T          eigenvalues ascending, float64
    U0 = the first null_dim columns of U
    P = U0 U0^T                symmetric, P P = P, trace = null_dim, and P K0 ~ 0

(AlphaEdit, arXiv 2410.02355, section 3.2.) The decomposition is stored, so another threshold only cuts it again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli import spectrum
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.moments import pooled, second_moment
from nullbooth_cli.store import Site, Store


@dataclass(frozen=True)
class Projector:
    """The null space of one site: `null_basis` `[D, K]` float64, orthonormal columns."""

    null_basis: NDArray[np.float64]

    @property
    def null_dim(self) -> int:
        return int(self.null_basis.shape[1])

    def apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """`rows @ P` for `[M, D]`, through the basis: 4 M D K operations, no `[D, D]` matrix."""
        return np.asarray((rows @ self.null_basis) @ self.null_basis.T)

    def dense(self) -> NDArray[np.float64]:
        """P itself, `[D, D]` float64, exactly symmetric. Cost: 2 D^2 K operations."""
        p = self.null_basis @ self.null_basis.T
        return np.asarray((p + p.T) / 2)


def decompose(moment: NDArray[np.float64], device: torch.device | str = "cpu") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(eigenvalues `[D]` ascending, eigenvectors `[D, D]` in columns) of a symmetric matrix, in float64.

    Raises ValueError for values that are not finite. Cost: about 9 D^3 operations.
    """
    if not np.isfinite(moment).all():
        raise ValueError("the second moment is not finite")
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.from_numpy(moment).to(device))
    return eigenvalues.cpu().numpy(), eigenvectors.cpu().numpy()


def num_scopes(site: Site, scope: str, num_steps: int) -> int:
    """How many decompositions a site has: one pooled over all timesteps, or one per recorded timestep."""
    return 1 if scope == "pooled" else site.num_recorded(num_steps)


def project_units(sites: Sequence[Site], scope: str, num_steps: int) -> list[tuple[Site, int]]:
    """The units of stage project, in order."""
    return [(site, index) for site in sites for index in range(num_scopes(site, scope, num_steps))]


def project(
    store: Store,
    device: torch.device,
    *,
    scope: str,
    centred: bool,
    rule: str,
    value: float,
    num_steps: int,
    units: Iterable[tuple[int, Site, int]],
) -> Iterator[tuple[int, Site, int]]:
    """Decompose (where that is not done yet) and cut the given units (number, site, scope index); yield each once it is durable.

    Raises ConfigError naming the site and its smallest eigenvalue where the null space is empty, StoreError for a moment that
    is not finite.
    """
    decomposed = store.progress("decomposition")
    for unit, site, index in units:
        if decomposed[unit]:
            eigenvalues = store.read_eigenvalues(site, index)
        else:
            sums = pooled(store, site, num_steps) if scope == "pooled" else store.read_moment(site, index)
            try:
                eigenvalues, eigenvectors = decompose(second_moment(*sums, centred=centred), device)
            except ValueError as error:
                raise StoreError(f"{site.name}: {error}", "nullbooth covariance --force computes it again") from error
            store.write_decomposition(site, index, eigenvalues, eigenvectors)
            store.commit("decomposition", unit)
        null_dim = spectrum.null_dim(eigenvalues, rule, value)
        if null_dim == 0:
            raise ConfigError(
                f"the null space of {site.name} is empty under {rule} {value:g}: its {len(eigenvalues)} eigenvalues go from "
                f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}",
                "loosen the threshold, leave this layer or feature out, or keep fewer prompts",
            )
        store.write_cut(site, index, null_dim, _leakage(store, site, index, eigenvalues, null_dim, scope, centred, num_steps))
        store.commit("project", unit)
        yield unit, site, index


def _leakage(
    store: Store,
    site: Site,
    index: int,
    eigenvalues: NDArray[np.float64],
    null_dim: int,
    scope: str,
    centred: bool,
    num_steps: int,
) -> float:
    if not centred:
        return spectrum.leakage(eigenvalues, null_dim)
    # A centred spectrum knows nothing of the mean, which leaks as well: measure on the moment about zero.
    sums = pooled(store, site, num_steps) if scope == "pooled" else store.read_moment(site, index)
    known = second_moment(*sums)
    basis = store.read_eigenvectors(site, index)[:, :null_dim]
    return float(np.sqrt(np.trace(basis.T @ known @ basis) / np.trace(known)))


def load_projector(store: Store, site: Site, index: int = 0) -> Projector:
    """The projector of a site; `index` is 0 for a pooled one, or the recorded timestep."""
    null_dim, _ = store.read_cut(site, index)
    return Projector(store.read_eigenvectors(site, index)[:, :null_dim])
