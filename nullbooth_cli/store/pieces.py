"""The pieces of a stage: every chunk that its progress marks as done, how it is read, and what is lost with it.

`verify` reads all of them. `require_whole` only looks for their names in a listing, so that a store that was copied without part
of its files is found out before anything relies on it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import NullboothError, StoreError
from nullbooth_cli.store.arrays import chunk_key
from nullbooth_cli.store.backing import UnreadableError
from nullbooth_cli.store.layout import covariance_units
from nullbooth_cli.store.moment_arrays import STAGED, chunk_index
from nullbooth_cli.store.partial_sums import PartialSums
from nullbooth_cli.store.progress_cells import RELEASED
from nullbooth_cli.store.store import Store

Cells = NDArray[np.uint32]
DAMAGE = (StoreError, UnreadableError)
UNKNOWN = 2**32 - 1  # a cell that cannot be read: its unit may be done
_GROUPS = {
    "schedule": ("schedule",),
    "collect": ("prompts", "features", "parts"),
    "covariance": ("moments", "staged"),
    "project": ("projectors",),
    "attention": ("attention",),
}
_DECOMPOSITION = ("eigenvalues", "eigenvectors", "energies", "noise_floor")
_CUT = ("null_dim", "leakage")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A chunk, by the key of its object, or a statement about several (None). `read` raises StoreError for damage.

    `units` are lost with it. `is_certain` is False where progress cannot be read: the chunk may never have been written.
    """

    key: str | None
    read: Callable[[], object]
    units: tuple[int, ...] = ()
    partial_sums: PartialSums | None = None
    is_certain: bool = True


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What cannot be read: the error names the array, the chunk, and the stage that writes it again.

    `group` is a group whose metadata say nothing that is not known, so that a repair writes them again.
    """

    error: NullboothError
    units: tuple[int, ...] = ()
    partial_sums: PartialSums | None = None
    group: str | None = None


Found = Iterator[Piece | Damage]


def pieces(store: Store, stage: str, cells: Mapping[str, Cells] | None = None) -> Found:
    """Everything that the progress of a stage marks as done; nothing if the stage never ran.

    Damage is yielded where it keeps pieces from being named, as in the shape of an array; the other pieces follow. `cells` are
    progress cells by name, as far as they were read already. Cost: the other cells, and one small object for each array.
    """
    built_on = {"schedule"} if stage == "schedule" else {"schedule", "collect", stage}  # a kill can leave a stage without these
    if built_on <= set(store.records):
        yield from _guarded(partial(_PIECES[stage], store, cells or {}))


def require_whole(store: Store, stage: str, cells: Mapping[str, Cells]) -> None:
    """Raise StoreError if an object is missing that the progress of a stage marks as done. Cost: a listing of its groups."""
    present: set[str] | None = None
    for piece in pieces(store, stage, cells):
        if isinstance(piece, Damage):
            raise piece.error
        if piece.key is None:
            piece.read()
            continue
        if present is None:
            present = set().union(*map(store.arrays.backing.keys, _GROUPS[stage]))
        if piece.is_certain and not {piece.key, f"{piece.key.rpartition('/')[0]}/zarr.json"} <= present:
            piece.read()


def _guarded(
    source: Callable[[], Iterable[Piece | Damage]], units: tuple[int, ...] = (), partial_sums: PartialSums | None = None
) -> Found:
    """The pieces of a source, until it meets damage itself."""
    try:
        yield from source()
    except DAMAGE as error:
        yield Damage(error=error, units=units, partial_sums=partial_sums)


def _chunk(store: Store, name: str, index: tuple[int, ...], units: tuple[int, ...] = (), *, is_certain: bool = True) -> Piece:
    read = partial(store.arrays.read_chunk, name, index)
    return Piece(key=chunk_key(name, index), read=read, units=units, is_certain=is_certain)


def _whole_array(store: Store, name: str, units: tuple[int, ...] = ()) -> Found:
    array = store.arrays.array(name)
    grid = [-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True)]
    for index in np.ndindex(*grid):
        yield _chunk(store, name, index, units)


def _progress(
    store: Store, stage: str, total: int, known: Mapping[str, Cells], name: str | None = None
) -> Generator[Piece | Damage, None, Cells]:
    """Yield the damaged cells of at least `total` units; returns all cells."""
    name = name or stage
    try:
        length = store.arrays.array(f"progress/{name}").shape[0]
        if length < total:
            problem = f"progress/{name} has {length} cells for {total} units"
            raise StoreError(f"{store.url}: {problem}", store.arrays.rewriting(f"progress/{name}"))
        cells = known[name] if name in known else store.progress.cells(name, damaged=UNKNOWN)
    except DAMAGE as error:
        yield Damage(error=error)
        return np.full(total, UNKNOWN, np.uint32)
    for unit in np.flatnonzero(cells == UNKNOWN).tolist():
        yield _chunk(store, f"progress/{name}", (unit,))
    return cells


def _num_steps(store: Store) -> int:
    """The number of steps, from any array of the schedule that can be read."""
    return _length(store, [f"schedule/{name}" for name in ("timesteps", "sigmas", "keys")])


def _length(store: Store, names: list[str]) -> int:
    """The length of arrays that are equally long, from the first that can be read."""
    for name in names[:-1]:
        try:
            return int(store.arrays.array(name).shape[0])
        except DAMAGE:
            continue
    return int(store.arrays.array(names[-1]).shape[0])


def _schedule(store: Store, _: Mapping[str, Cells]) -> Found:
    for name in ("timesteps", "sigmas", "keys"):
        yield from _guarded(partial(_whole_array, store, f"schedule/{name}"))


def _collect(store: Store, known: Mapping[str, Cells]) -> Found:
    texts = [f"prompts/{name}" for name in ("text", "ids", "images")]
    for name in texts:
        yield from _guarded(partial(_whole_array, store, name))
    layout, knows_rows = store.layout, True
    try:
        num_rows = len(store.rows)
    except DAMAGE:  # of the prompts, which were named above
        num_rows, knows_rows = _length(store, texts), False
    cells = yield from _progress(store, "collect", layout.num_units(num_rows), known)
    units = [unit for unit, cell in enumerate(cells) if cell and (not knows_rows or store.members(unit))]
    certain = {unit for unit in units if knows_rows and cells[unit] != UNKNOWN}
    if layout.keeps_features:
        blocks = {site: len(layout.blocks(site, _num_steps(store))) for site in store.sites}
        for unit in units:
            for site in store.sites if cells[unit] != RELEASED else ():
                for number in range(blocks[site]):
                    yield _chunk(store, f"features/{site.name}", (number, unit, 0, 0), (unit,), is_certain=unit in certain)
    if layout.keeps_moments:
        yield from _guarded(partial(_counted_once, store, sorted(certain)))
        for part in store.moments.all_partial_sums():
            yield from _guarded(partial(_partial_sums, store, part))


def _counted_once(store: Store, units: list[int]) -> Found:
    lost = tuple(store.moments.not_folded(units))
    yield Piece(key=None, read=partial(store.moments.check_counted_once, units), units=lost)


def _partial_sums(store: Store, part: PartialSums) -> Found:
    units, slot = part.units, part.slot

    def of_site(site: Site) -> Found:
        name = f"parts/{part.name}/{site.name}"
        array = store.arrays.array(name)
        for number in range(-(-array.shape[1] // array.chunks[1])):
            index = (slot, number, 0, 0)
            read = partial(store.arrays.read_chunk, name, index)
            yield Piece(key=chunk_key(name, index), read=read, units=units, partial_sums=part)

    for site in store.sites if units else ():
        yield from _guarded(partial(of_site, site), units, part)


def _covariance(store: Store, known: Mapping[str, Cells]) -> Found:
    every = covariance_units(store.sites, _num_steps(store), store.layout)
    cells = yield from _progress(store, "covariance", len(every), known)
    for unit, (site, block) in enumerate(every):
        cell, number = int(cells[unit]), block.start // len(store.layout.blocks(site, _num_steps(store))[0])
        if cell != UNKNOWN and cell & STAGED:  # those in force are about to be replaced
            yield _chunk(store, f"staged/{site.name}", (number, 0, 0), (unit,))
        elif cell:
            for array in store.moments.array_names(site):
                index = chunk_index(array, number)
                yield _chunk(store, f"moments/{site.name}/{array}", index, (unit,), is_certain=cell != UNKNOWN)


def _project(store: Store, known: Mapping[str, Cells]) -> Found:
    every = [
        (f"projectors/{site.name}", index)
        for site in store.sites
        for index in range(_length(store, [f"projectors/{site.name}/{name}" for name in (*_DECOMPOSITION, *_CUT)]))
    ]
    budget = ("tasks",) if store.records.get("decomposition", {}).get("tasks") else ()
    for progress, arrays in (("decomposition", (*_DECOMPOSITION, *budget)), ("project", _CUT)):
        cells = yield from _progress(store, "project", len(every), known, progress)
        for (name, number), cell in zip(every, cells, strict=False):
            for array in arrays if cell else ():
                index = (number, *(0,) * _AXES[array])
                yield _chunk(store, f"{name}/{array}", index, is_certain=bool(cell != UNKNOWN))


_AXES = {"eigenvalues": 1, "eigenvectors": 2, "energies": 2, "noise_floor": 0, "null_dim": 0, "leakage": 1, "tasks": 3}


def _attention(store: Store, known: Mapping[str, Cells]) -> Found:
    keys = store.records["attention"]["settings"]["prompts"]
    cells = yield from _progress(store, "attention", len(keys), known)

    def of_prompt(name: str, unit: int) -> Found:
        for layer in ("image", *store.arrays.array(f"{name}/image").attributes["layers"]):
            yield from _guarded(partial(_whole_array, store, f"{name}/{layer}", (unit,)), (unit,))

    for unit, key in enumerate(keys):
        name = f"attention/{key}"
        if cells[unit] and (cells[unit] != UNKNOWN or store.arrays.has(f"{name}/image")):
            yield from _guarded(partial(of_prompt, name, unit), (unit,))


_PIECES: dict[str, Callable[[Store, Mapping[str, Cells]], Found]] = {
    "schedule": _schedule,
    "collect": _collect,
    "covariance": _covariance,
    "project": _project,
    "attention": _attention,
}
