"""Stage project: decomposes second moments and cuts their spectrum into what is known and what is null.

    C = U diag(l) U^T          eigenvalues ascending, float64
    U0 = the first null_dim columns of U
    P = U0 U0^T                symmetric, P P = P, trace = null_dim, and P K0 ~ 0

(AlphaEdit, arXiv 2410.02355, section 3.2.) The decomposition is stored, so another threshold only cuts it again. `nullspace` has
what is done with a projector.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import Decomposing, pooled, second_moment
from nullbooth_cli.store import Cut, Decomposition, Store
from nullbooth_cli.store.background import read_ahead

GROUP_BYTES = 256 << 20  # of matrices that a GPU decomposes at once
# Rules whose value is an eigenvalue: below the noise floor it would cut between round-off and round-off.
EIGENVALUE_RULES = ("nullspace_threshold", "relative_threshold")
ProjectUnit = tuple[int, Site, int]
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def eigh(matrices: Sequence[NDArray[np.float64]], device: torch.device | str = "cpu") -> list[Pair]:
    """(eigenvalues `[D]` ascending, eigenvectors `[D, D]` in columns) of symmetric `[D, D]` matrices of one size, in float64.

    On a GPU they go as one batch; on a CPU one after the other, each on all cores. Cost: about 9 D^3 operations each.
    """
    if torch.device(device).type == "cpu":
        found = [torch.linalg.eigh(torch.from_numpy(matrix)) for matrix in matrices]
        return [(values.numpy(), vectors.numpy()) for values, vectors in found]
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.stack(matrices)).to(device))
    return list(zip(values.cpu().numpy(), vectors.cpu().numpy(), strict=True))


def project(
    store: Store,
    device: torch.device,
    settings: Decomposing,
    rule: str,
    value: float,
    units: Iterable[ProjectUnit],
    *,
    may_be_empty: bool = False,
) -> Iterator[ProjectUnit]:
    """Decompose (where that is not done yet) and cut the given units (number, site, decomposition); yield each once durable.

    Raises ConfigError naming the site where the null space is empty (unless it may be) or the threshold lies below the noise
    floor, StoreError for a moment that is not finite or has eigenvalues that are clearly negative.
    """
    decomposed = store.progress.done("decomposition")
    for number, site, index, fresh in _decompositions(store, device, settings, units, decomposed):
        if fresh is not None:
            store.projectors.write_decomposition(site, index, fresh)
            store.progress.commit("decomposition", number)
            eigenvalues, energies, floor = fresh.eigenvalues, fresh.energies, fresh.noise_floor
        else:
            eigenvalues, energies = store.projectors.read_eigenvalues(site, index), store.projectors.read_energies(site, index)
            floor = store.projectors.read_noise_floor(site, index)
        found = cut(site.name, eigenvalues, energies, floor, rule, value, may_be_empty=may_be_empty)
        store.projectors.write_cut(site, index, found)
        store.progress.commit("project", number)
        yield number, site, index


def cut(
    name: str,
    eigenvalues: NDArray[np.float64],
    energies: NDArray[np.float64],
    noise_floor: float,
    rule: str,
    value: float,
    *,
    may_be_empty: bool = False,
) -> Cut:
    """Cut one spectrum. Raises ConfigError naming it if nothing is null, unless that may be, or if the threshold lies below the
    noise floor."""
    null_dim, held_out = spectrum.null_dim_of(eigenvalues, energies, rule, value)
    there = f"its {len(eigenvalues)} eigenvalues go from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}"
    threshold = spectrum.threshold(eigenvalues, rule, value, null_dim)
    if rule in EIGENVALUE_RULES and threshold is not None and threshold < noise_floor:
        raise ConfigError(
            f"{rule} {value:g} cuts {name} at {threshold:.3g}, below its noise floor of {noise_floor:.3g}: {there}",
            "eigenvalues below the noise floor are round-off: raise the threshold, or use null_dim or target_leakage",
        )
    if null_dim == 0 and not may_be_empty:
        raise ConfigError(
            f"the null space of {name} is empty under {rule} {value:g}: {there}",
            "loosen the threshold, leave this layer or feature out, keep fewer prompts, or let it be (project.empty: freeze)",
        )
    leaked = None if held_out is None else spectrum.leakage(held_out, null_dim)
    return Cut(null_dim, spectrum.leakage(energies[0], null_dim), leaked)


def require_possible(rule: str, value: float, sites: Sequence[Site], accumulate: str) -> None:
    """Raise ConfigError for a rule that cannot cut some site, whatever its spectrum: what is certain before there is one."""
    narrowest = min(sites, key=lambda site: site.dim)
    if rule == "null_dim" and value > narrowest.dim:
        raise ConfigError(
            f"null_dim {value:g} is more than the {narrowest.dim} dimensions of {narrowest.name}",
            "ask for fewer, or leave the layer or feature out",
        )
    floor = max(spectrum.noise_floor(1.0, site.dim, accumulate) for site in sites)
    if rule == "relative_threshold" and value < floor:
        raise ConfigError(
            f"relative_threshold {value:g} lies below the noise floor, {floor:.2g} with covariance.accumulate: {accumulate}",
            "eigenvalues below the noise floor are round-off: raise the threshold, or use null_dim or target_leakage",
        )


def spectra(
    store: Store, device: torch.device, settings: Decomposing, *, stored: bool
) -> Iterator[tuple[Site, int, NDArray[np.float64], NDArray[np.float64], float]]:
    """(site, index, eigenvalues, energies, noise floor) of every decomposition, without writing: read where they are `stored`."""
    if stored:
        for site, index in settings.pooling.units(store.sites, settings.steps):
            eigenvalues, energies = store.projectors.read_eigenvalues(site, index), store.projectors.read_energies(site, index)
            yield site, index, eigenvalues, energies, store.projectors.read_noise_floor(site, index)
    else:
        for site, index, found in decompositions(store, device, settings):
            yield site, index, found.eigenvalues, found.energies, found.noise_floor


def decompositions(
    store: Store, device: torch.device, settings: Decomposing, sites: Sequence[Site] | None = None
) -> Iterator[tuple[Site, int, Decomposition]]:
    """Decompose the moments of the sites (all of them by default), site by site; nothing is written."""
    units = [(0, *unit) for unit in settings.pooling.units(store.sites if sites is None else sites, settings.steps)]
    for _, site, index, found in _decompositions(store, device, settings, units, np.zeros(1, bool)):
        assert found is not None
        yield site, index, found


def _decompositions(
    store: Store, device: torch.device, settings: Decomposing, units: Iterable[ProjectUnit], decomposed: NDArray[np.bool_]
) -> Iterator[tuple[int, Site, int, Decomposition | None]]:
    """Each unit with its decomposition, or with None where one is stored; neighbours of one size go together."""
    heldout = store.heldout() if settings.heldout else None

    def read(unit: ProjectUnit) -> tuple[ProjectUnit, tuple[Sums, Sums | None] | None]:
        number, site, index = unit
        if decomposed[number]:
            return unit, None
        group = settings.pooling.groups(site, settings.steps)[index]
        other = pooled(heldout, site, group, settings.pooling.weight) if heldout else None
        return unit, (pooled(store, site, group, settings.pooling.weight), other)

    def size(item: tuple[ProjectUnit, object]) -> tuple[int, bool]:
        return item[0][1].dim, item[1] is None

    for (dim, _), same in groupby(read_ahead(read, units), key=size):
        at_once = max(1, GROUP_BYTES // (8 * dim * dim)) if device.type != "cpu" else 1
        while group := list(islice(same, at_once)):
            yield from _decompose(group, device, settings)


def _decompose(
    group: list[tuple[ProjectUnit, tuple[Sums, Sums | None] | None]], device: torch.device, settings: Decomposing
) -> Iterator[tuple[int, Site, int, Decomposition | None]]:
    matrices = []
    for (_, site, _), sums in group:
        if sums is not None:
            matrix = second_moment(*sums[0], centred=settings.centred)
            if not np.isfinite(matrix).all():
                raise StoreError(
                    f"{site.name}: the second moment is not finite", "nullbooth covariance --force computes it again"
                )
            matrices.append(matrix)
    found = iter(eigh(matrices, device) if matrices else ())
    for (number, site, index), sums in group:
        yield number, site, index, None if sums is None else _with_energies(site, *next(found), *sums, settings)


def _with_energies(
    site: Site,
    eigenvalues: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
    sums: Sums,
    heldout: Sums | None,
    settings: Decomposing,
) -> Decomposition:
    known = _energies(second_moment(*sums), eigenvectors) if settings.centred else np.clip(eigenvalues, 0.0, None)
    held = _energies(second_moment(*heldout), eigenvectors) if heldout else np.full_like(known, np.nan)
    # A centred spectrum carries the round-off of the larger, uncentred, moment.
    floor = spectrum.noise_floor(max(float(eigenvalues[-1]), float(known.max())), site.dim, settings.accumulate)
    if eigenvalues[0] < -floor:
        raise StoreError(
            f"{site.name}: the second moment is not positive semi-definite: its smallest eigenvalue is {eigenvalues[0]:.3g}, "
            f"round-off explains {-floor:.3g}",
            "nullbooth covariance --force computes it again",
        )
    return Decomposition(eigenvalues, eigenvectors, np.stack([known, held]), floor)


def _energies(moment: NDArray[np.float64], eigenvectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """u^T C u of each column u, `[D]`. Cost: 2 D^3 operations."""
    return np.asarray(np.einsum("dk,dk->k", eigenvectors, moment @ eigenvectors))
