"""Stage covariance: reduces stored features to second moments, or adds up the sums of several processes."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from nullbooth_cli.datatypes import WHOLE, AnySums, Factoring, Site
from nullbooth_cli.nullspace.moments import Summing, fold, summing
from nullbooth_cli.nullspace.pooling import add_up
from nullbooth_cli.store import STAGED, Store
from nullbooth_cli.store.background import Writer, read_ahead
from nullbooth_cli.tensors import unpack

READ_BYTES = 1 << 20  # small chunks are read in groups of this size: each group costs a switch between two threads
COMMIT_SECONDS = 1.0  # a commit waits for the disk, so finished units are committed together


class CovarianceUnit(NamedTuple):
    """The piece of stage covariance that is resumed: recorded timesteps of one site that share a chunk."""

    number: int
    site: Site
    timesteps: range


def covariance(
    store: Store, device: torch.device, accumulate: str, units: Iterable[CovarianceUnit], factoring: Factoring = WHOLE
) -> Iterator[CovarianceUnit]:
    """Reduce the collection to the moments of the given units; yield each unit once it is durable.

    Features are read once: a moment that covers the first n units of the collection needs only the features after them. With
    `keep: moments` there are no features, and the partial sums of all processes are added up. Raises StoreError if they lack a
    unit of the collection.
    """
    target = len(store.progress.cells("collect"))
    if store.layout.keep == "features":
        reduced = _from_features(store, device, accumulate, units, factoring, target=target)
    else:
        reduced = _from_partial_sums(store, units)
    finished: list[CovarianceUnit] = []
    last = time.monotonic()
    with Writer() as writer:
        for unit, sums in reduced:
            nbytes = sum(of_step.nbytes for of_step in sums)
            writer.submit(nbytes, store.moments.write, unit.site, unit.timesteps, sums)
            finished.append(unit)
            if time.monotonic() - last >= COMMIT_SECONDS:
                yield from _make_durable(store, writer, finished, target)
                finished, last = [], time.monotonic()
        yield from _make_durable(store, writer, finished, target)


def _make_durable(store: Store, writer: Writer, units: list[CovarianceUnit], target: int) -> list[CovarianceUnit]:
    writer.drain()
    store.progress.commit("covariance", [unit.number for unit in units], target)
    return units


def _from_features(
    store: Store,
    device: torch.device,
    accumulate: str,
    units: Iterable[CovarianceUnit],
    factoring: Factoring,
    *,
    target: int,
) -> Iterator[tuple[CovarianceUnit, Sequence[AnySums]]]:
    """Each unit with the sums of its timesteps, over all features that its moment does not cover yet."""
    dtype, cells = store.layout.dtype, store.progress.cells("covariance")
    collected = [batch for batch in range(target) if store.members(batch)]

    def read(item: tuple[CovarianceUnit, list[int]]) -> tuple[CovarianceUnit, torch.Tensor | None]:
        unit, batches = item
        if not batches:
            return unit, None
        # numpy concatenates them in this thread: torch's threads would wait here for those that multiply.
        chunks = [store.features.read(unit.site, unit.timesteps, batch) for batch in batches]
        vectors = unpack(chunks[0] if len(batches) == 1 else np.concatenate(chunks, axis=1), dtype).flatten(1, 2)
        return unit, vectors.pin_memory() if device.type == "cuda" else vectors

    def groups() -> Iterator[tuple[CovarianceUnit, list[int]]]:
        """The batches that each unit lacks, in groups of about READ_BYTES; an empty group ends a unit."""
        for unit in units:
            covered = _finish_staged(store, unit, int(cells[unit.number]))
            cells[unit.number] = covered
            lacking = collected[bisect_left(collected, covered) :]
            size = max(1, READ_BYTES // store.features.chunk_nbytes(unit.site))
            yield from ((unit, lacking[i : i + size]) for i in range(0, len(lacking), size))
            yield unit, []

    moments: Summing | None = None
    for unit, vectors in read_ahead(read, groups()):
        number, site, timesteps = unit
        rows = factoring.rows(site.dim)
        moments = moments or summing(len(timesteps), site.dim, rows, device=device, accumulate=accumulate)
        if vectors is not None:
            fold(moments, site, vectors.to(device, non_blocking=True))
            continue
        if cells[number]:
            moments.add(store.moments.read(site, timesteps))
            store.moments.stage(site, timesteps, moments.sums())
            store.progress.commit("covariance", number, target | STAGED)
        yield unit, moments.sums()
        moments = None


def _finish_staged(store: Store, unit: CovarianceUnit, cell: int) -> int:
    """Put staged moments in force if a kill left some. Returns the number of units that the moments in force cover."""
    number, site, timesteps = unit
    if cell & STAGED:
        cell &= ~STAGED
        store.moments.write(site, timesteps, store.moments.read_staged(site, timesteps))
        store.progress.commit("covariance", number, cell)
    return cell


def _from_partial_sums(store: Store, units: Iterable[CovarianceUnit]) -> Iterator[tuple[CovarianceUnit, Sequence[AnySums]]]:
    """Each unit with the sums of its timesteps over all processes. Neighbours of one site share one read of its sums."""
    parts = [part for part in store.moments.all_partial_sums() if part.units]
    store.moments.check_counted_once(batch for batch in range(len(store.progress.cells("collect"))) if store.members(batch))
    last: tuple[Site, list[AnySums]] | None = None
    for unit in units:
        if last is None or last[0] != unit.site:
            last = unit.site, [add_up(sums) for sums in zip(*(part.read(unit.site) for part in parts), strict=True)]
        yield unit, [last[1][t] for t in unit.timesteps]
