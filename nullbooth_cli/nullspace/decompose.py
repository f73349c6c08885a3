"""Stage project: decomposes second moments, and has their spectra cut into a preserved part and a null space (`cut.py`).

    C = U diag(l) U^T          eigenvalues ascending, float64
    U0 = the first null_dim columns of U
    P = U0 U0^T                symmetric, P P = P, trace = null_dim, and P K0 ~ 0

(AlphaEdit, arXiv 2410.02355, section 3.2.) The decomposition is stored, so another threshold cuts it again without decomposing.
`projector.py` applies P.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.datatypes import AnySums, Site, Sums
from nullbooth_cli.errors import DataError, Rerun
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.budget import task_spectra
from nullbooth_cli.nullspace.cut import SiteSpectrum, cut
from nullbooth_cli.nullspace.decompose_factor import decompose_factor
from nullbooth_cli.nullspace.factor_limits import FactorTooSmall, factors_too_small
from nullbooth_cli.nullspace.pooling import DecompositionSettings, moment_of, pooled, second_moment
from nullbooth_cli.store import Decomposition, Store, Task, TaskSpectrum, tasks_of
from nullbooth_cli.store.background import read_ahead

GROUP_BYTES = 256 << 20  # of matrices in one batch on a GPU: one small matrix alone leaves most of it idle
FloatArray = NDArray[np.float64]


class ProjectUnit(NamedTuple):
    """The piece of stage project that is resumed: the decomposition of one group of a site's timesteps (see `Pooling.groups`)."""

    number: int
    site: Site
    group: int


class _PooledSums(NamedTuple):
    """The inputs of a decomposition; `heldout` is None without held-out prompts."""

    collected: AnySums
    heldout: AnySums | None


def eigh(matrices: Sequence[FloatArray], device: torch.device | str = "cpu") -> list[tuple[FloatArray, FloatArray]]:
    """(eigenvalues `[D]` ascending, eigenvectors `[D, D]` in columns) of symmetric `[D, D]` matrices of one size, in float64.

    A GPU decomposes them as one batch, a CPU one after the other, each on all cores. Cost: about 9 D^3 operations each.
    """
    if torch.device(device).type == "cpu":
        found = [torch.linalg.eigh(torch.from_numpy(matrix)) for matrix in matrices]
        return [(values.numpy(), vectors.numpy()) for values, vectors in found]
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.stack(matrices)).to(device))
    return list(zip(values.cpu().numpy(), vectors.cpu().numpy(), strict=True))


def project(
    store: Store,
    device: torch.device,
    settings: DecompositionSettings,
    units: Iterable[ProjectUnit],
    *,
    rule: str,
    value: float,
    may_be_empty: bool = False,
) -> Iterator[ProjectUnit]:
    """Decompose the given units where no decomposition is stored, and cut them; yield each unit once it is durable.

    Raises ConfigError naming the site if its null space is empty (unless `may_be_empty`) or the threshold lies below its noise
    floor; after all units, if factors of some are too small for the rule, with the value that all of them allow. Raises DataError
    for a moment that is not finite or has eigenvalues that are clearly negative.
    """
    decomposed, seen, refused = store.progress.done("decomposition"), set[Site](), list[FactorTooSmall]()
    tasks = tasks_of(store, "hard")
    for unit, fresh in _decompositions(store, device, settings, units, decomposed=decomposed):
        number, site, group = unit
        if fresh is not None:
            store.projectors.write_decomposition(site, group, fresh)
            if tasks:
                found_tasks = _task_spectra(store, device, settings, unit, final=fresh, tasks=tasks)
                store.projectors.write_tasks(site, group, found_tasks)
            store.progress.commit("decomposition", number)
            found = _spectrum(site, group, fresh)
        else:
            found = _stored_spectrum(store, site, group)
        seen.add(site)
        try:
            made = cut(found, rule=rule, value=value, may_be_empty=may_be_empty)
        except FactorTooSmall as error:
            refused.append(error)
            continue
        store.projectors.write_cut(site, group, made)
        store.progress.commit("project", number)
        yield unit
    if refused:
        raise factors_too_small(refused, rule, value, len(seen))


def _task_spectra(
    store: Store,
    device: torch.device,
    settings: DecompositionSettings,
    unit: ProjectUnit,
    *,
    final: Decomposition,
    tasks: Sequence[Task],
) -> list[TaskSpectrum]:
    """What each hard task met and left; `final` is the decomposition that has all of them."""
    site, group = unit.site, unit.group
    timesteps, weight = settings.pooling.groups(site, settings.steps)[group], settings.pooling.weight
    inner = store.heldout() if settings.heldout else None
    heldout = pooled(inner, site, timesteps, weight) if inner else None

    def decompose(sums: AnySums) -> Decomposition:
        [(_, found)] = _decompose([(unit, _PooledSums(sums, heldout))], device, settings)
        assert found is not None
        return found

    return task_spectra(store, site, group, settings=settings, final=final, tasks=tasks, decompose=decompose)


def spectra(store: Store, device: torch.device, settings: DecompositionSettings, *, stored: bool) -> Iterator[SiteSpectrum]:
    """The spectrum of every decomposition; nothing is written. `stored` reads them instead of decomposing."""
    if stored:
        for site, group in settings.pooling.units(store.sites, settings.steps):
            yield _stored_spectrum(store, site, group)
    else:
        yield from (_spectrum(*found) for found in decompositions(store, device, settings))


def _spectrum(site: Site, group: int, found: Decomposition) -> SiteSpectrum:
    return SiteSpectrum(
        site=site,
        group=group,
        eigenvalues=found.eigenvalues,
        energies=found.energies,
        noise_floor=found.noise_floor,
        dropped=site.dim - found.eigenvectors.shape[1],
    )


def _stored_spectrum(store: Store, site: Site, group: int) -> SiteSpectrum:
    stored = store.projectors
    return SiteSpectrum(
        site=site,
        group=group,
        eigenvalues=stored.read_eigenvalues(site, group),
        energies=stored.read_energies(site, group),
        noise_floor=stored.read_noise_floor(site, group),
        dropped=stored.num_dropped(site),
    )


def decompositions(
    store: Store, device: torch.device, settings: DecompositionSettings, sites: Sequence[Site] | None = None
) -> Iterator[tuple[Site, int, Decomposition]]:
    """(site, group, decomposition) of the moments of the sites, all of them by default; nothing is written."""
    units = [ProjectUnit(0, *unit) for unit in settings.pooling.units(store.sites if sites is None else sites, settings.steps)]
    for unit, found in _decompositions(store, device, settings, units, decomposed=np.zeros(1, bool)):
        assert found is not None
        yield unit.site, unit.group, found


def _decompositions(
    store: Store,
    device: torch.device,
    settings: DecompositionSettings,
    units: Iterable[ProjectUnit],
    *,
    decomposed: NDArray[np.bool_],
) -> Iterator[tuple[ProjectUnit, Decomposition | None]]:
    """Each unit with its decomposition, or with None where one is stored; neighbours of one size are decomposed together."""
    heldout, tasks = store.heldout() if settings.heldout else None, tasks_of(store, "hard")

    def read(unit: ProjectUnit) -> tuple[ProjectUnit, _PooledSums | None]:
        if decomposed[unit.number]:
            return unit, None
        site, weight = unit.site, settings.pooling.weight
        timesteps = settings.pooling.groups(site, settings.steps)[unit.group]
        other = pooled(heldout, site, timesteps, weight) if heldout else None
        return unit, _PooledSums(pooled(store, site, timesteps, weight, tasks=tasks), other)

    def size(item: tuple[ProjectUnit, _PooledSums | None]) -> tuple[int, bool]:
        unit, sums = item
        return unit.site.dim, sums is not None and isinstance(sums.collected, Sums)

    for (dim, _), same in groupby(read_ahead(read, units), key=size):
        at_once = max(1, GROUP_BYTES // (8 * dim * dim)) if device.type != "cpu" else 1
        while group := list(islice(same, at_once)):
            yield from _decompose(group, device, settings)


def _decompose(
    group: list[tuple[ProjectUnit, _PooledSums | None]], device: torch.device, settings: DecompositionSettings
) -> Iterator[tuple[ProjectUnit, Decomposition | None]]:
    matrices = []
    for unit, sums in group:
        if sums is not None and isinstance(sums.collected, Sums):
            matrix = second_moment(sums.collected, centred=settings.centred)
            _require_finite(matrix, unit.site)
            matrices.append(matrix)
    found = iter(eigh(matrices, device) if matrices else ())
    for unit, sums in group:
        if sums is None:
            yield unit, None
        elif isinstance(sums.collected, Sums):
            yield unit, _with_energies(unit.site, *next(found), sums=sums, settings=settings)
        else:
            moment, heldout = moment_of(sums.collected), None if sums.heldout is None else moment_of(sums.heldout)
            _require_finite(moment.kept, unit.site)
            yield unit, decompose_factor(moment, heldout, device, settings.accumulate)


def _require_finite(values: FloatArray, site: Site) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{site.name}: the second moment is not finite", Rerun("covariance", force=True))


def _with_energies(
    site: Site, eigenvalues: FloatArray, eigenvectors: FloatArray, *, sums: _PooledSums, settings: DecompositionSettings
) -> Decomposition:
    about_zero = moment_of(sums.collected) if settings.centred else None
    collected = np.clip(eigenvalues, 0.0, None) if about_zero is None else about_zero.energies(eigenvectors)
    heldout = moment_of(sums.heldout).energies(eigenvectors) if sums.heldout else np.full_like(collected, np.nan)
    # A centred spectrum carries the round-off of the larger, uncentred, moment.
    estimate = spectrum.noise_floor(max(float(eigenvalues[-1]), float(collected.max())), site.dim, settings.accumulate)
    bound = spectrum.largest_rounding(
        float(collected.sum()) * (3 if settings.centred else 1),  # the mean is rounded too, and enters twice
        dim=site.dim,
        count=sums.collected.count,
        accumulate=settings.accumulate,
        at_once=max(1, settings.batch_size * site.num_tokens),
    )
    if eigenvalues[0] < -bound:
        raise DataError(
            f"{site.name}: the second moment is not positive semi-definite: its smallest eigenvalue is {eigenvalues[0]:.3g}, "
            f"round-off explains at most {-bound:.3g}",
            Rerun("covariance", force=True),
        )
    floor = max(estimate, -float(eigenvalues[0]))  # a negative eigenvalue is round-off, and so is any of its size
    return Decomposition(eigenvalues, eigenvectors, np.stack([collected, heldout]), floor)
