"""Stage covariance: reduces stored features to second moments, or adds up the sums of several processes."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.nullspace.moments import SecondMoments, fold
from nullbooth_cli.nullspace.pooling import add_up
from nullbooth_cli.store import Store, check_disjoint
from nullbooth_cli.store.background import Writer, read_ahead
from nullbooth_cli.tensors import unpack

READ_BYTES = 1 << 20
STAGED = 1 << 31  # in a cell of covariance: the moments of so many units lie beside the ones in force
COMMIT_SECONDS = 1.0
CovarianceUnit = tuple[int, Site, range]


def covariance(store: Store, device: torch.device, accumulate: str, units: Iterable[CovarianceUnit]) -> Iterator[CovarianceUnit]:
    """Reduce what was collected to the moments of the given units (number, site, timesteps); yield each once it is durable.

    Features are read once: a unit whose moment covers the first n units of the collection only reads those after them. Where the
    model's run folded the moments already, the parts are added up.
    """
    target = len(store.progress.cells("collect"))
    moments = (
        _from_features(store, device, accumulate, units, target) if store.layout.keep == "features" else _from_parts(store, units)
    )
    finished: list[CovarianceUnit] = []
    last = time.monotonic()
    with Writer() as writer:
        for unit, sums in moments:
            writer.submit(sum(of_step[0].nbytes for of_step in sums), store.moments.write, *unit[1:], sums)
            finished.append(unit)
            if time.monotonic() - last >= COMMIT_SECONDS:
                yield from _make_durable(store, writer, finished, target)
                finished, last = [], time.monotonic()
        yield from _make_durable(store, writer, finished, target)


def _make_durable(store: Store, writer: Writer, units: list[CovarianceUnit], target: int) -> list[CovarianceUnit]:
    writer.drain()
    store.progress.commit("covariance", [number for number, _, _ in units], target)
    return units


def _from_features(
    store: Store, device: torch.device, accumulate: str, units: Iterable[CovarianceUnit], target: int
) -> Iterator[tuple[CovarianceUnit, list[Sums]]]:
    dtype, cells = store.layout.dtype, store.progress.cells("covariance")
    live = [unit for unit in range(target) if store.members(unit)]

    def read(item: tuple[CovarianceUnit, list[int]]) -> tuple[CovarianceUnit, torch.Tensor | None]:
        unit, group = item
        if not group:
            return unit, None
        # numpy puts them together, in this thread: torch's threads would wait here for those that multiply.
        of_chunks = [store.features.read(*unit[1:], chunk) for chunk in group]
        vectors = unpack(of_chunks[0] if len(group) == 1 else np.concatenate(of_chunks, axis=1), dtype).flatten(1, 2)
        return unit, vectors.pin_memory() if device.type == "cuda" else vectors

    def chunks() -> Iterator[tuple[CovarianceUnit, list[int]]]:
        """The chunks that each unit lacks, small ones in groups that are worth a turn; and an empty group after them."""
        for unit in units:
            covered = _finish_staged(store, unit, int(cells[unit[0]]))
            cells[unit[0]] = covered
            lacking = live[bisect_left(live, covered) :]
            size = max(1, READ_BYTES // store.features.chunk_nbytes(unit[1]))
            yield from ((unit, lacking[i : i + size]) for i in range(0, len(lacking), size))
            yield unit, []

    moments: SecondMoments | None = None
    for unit, vectors in read_ahead(read, chunks()):
        number, site, block = unit
        moments = moments or SecondMoments(len(block), site.dim, device, accumulate)
        if vectors is not None:
            fold(moments, site, vectors.to(device, non_blocking=True))
            continue
        if cells[number]:
            moments.add(store.moments.read(site, block))
            store.moments.stage(site, block, moments.sums())
            store.progress.commit("covariance", number, target | STAGED)
        yield unit, moments.sums()
        moments = None


def _finish_staged(store: Store, unit: CovarianceUnit, cell: int) -> int:
    """Put staged moments in force if a kill left some. Returns how many units the moments in force cover."""
    number, site, block = unit
    if cell & STAGED:
        cell &= ~STAGED
        store.moments.write(site, block, store.moments.read_staged(site, block))
        store.progress.commit("covariance", number, cell)
    return cell


def _from_parts(store: Store, units: Iterable[CovarianceUnit]) -> Iterator[tuple[CovarianceUnit, list[Sums]]]:
    parts = [part for part in store.moments.parts() if part.units]
    check_disjoint(parts)
    folded = {unit for part in parts for unit in part.units}
    missing = [unit for unit in range(len(store.progress.cells("collect"))) if store.members(unit) and unit not in folded]
    if missing:
        raise StoreError(
            f"{store.url}: no part of the moments holds unit {missing[0]} ({len(missing)} units are missing)",
            f"nullbooth collect --repair -s {store.url}",
        )
    last: tuple[Site, list[Sums]] | None = None
    for unit in units:
        _, site, block = unit
        if last is None or last[0] != site:
            last = site, [add_up(sums) for sums in zip(*(part.read(site) for part in parts), strict=True)]
        yield unit, [last[1][t] for t in block]
