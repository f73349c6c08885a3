"""Checks every chunk of the units that are marked as done, and marks damaged units as not done, so that a run does them again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import StoreError
from nullbooth_cli.formatting import listed
from nullbooth_cli.store.layout import covariance_units
from nullbooth_cli.store.moment_arrays import STAGED
from nullbooth_cli.store.partial_sums import PartialSums
from nullbooth_cli.store.progress_cells import RELEASED
from nullbooth_cli.store.store import Store


@dataclass(frozen=True)
class ChunkCheck:
    """A piece of a stage, about one chunk: the units that are lost if it is damaged, and how to read it."""

    stage: str
    units: tuple[int, ...]
    read: Callable[[], object]
    partial_sums: PartialSums | None = None


@dataclass(frozen=True)
class Damage:
    """A piece that could not be read: the error names the array, the chunk, and the stage that writes it again."""

    check: ChunkCheck
    error: StoreError


def chunk_checks(store: Store, stage: str) -> Iterator[ChunkCheck]:
    """Everything that the progress of a stage marks as done, in pieces of about one chunk; nothing if the stage never ran."""
    if stage not in store.records:
        return
    num_steps = store.num_steps
    if stage == "schedule":
        yield ChunkCheck(stage, (), store.schedule)
    elif stage == "collect":
        yield ChunkCheck(stage, (), lambda: store.rows)
        yield from _collect_checks(store)
    elif stage == "covariance":
        cells = store.progress.cells(stage, damaged=0)
        for number, (site, block) in enumerate(covariance_units(store.sites, num_steps, store.layout)):
            if cells[number] & STAGED:
                yield ChunkCheck(stage, (number,), partial(store.moments.read_staged, site, block))
            elif cells[number]:
                yield ChunkCheck(stage, (number,), partial(store.moments.read_one, site, block.start))
    elif stage == "project":
        done = iter(store.progress.cells(stage, damaged=0))
        for site in store.sites:
            for index in range(store.projectors.num_decompositions(site)):
                if next(done):
                    for read in (store.projectors.read_decomposition, store.projectors.read_cut):
                        yield ChunkCheck(stage, (), partial(read, site, index))
    elif stage == "attention":
        prompts, cells = {prompt.id: prompt for prompt in store.prompts()}, store.progress.cells(stage, damaged=0)
        for number, key in enumerate(store.records[stage]["settings"]["prompts"]):
            if cells[number]:
                yield ChunkCheck(stage, (number,), partial(store.attention.read, prompts[key]))
    yield ChunkCheck(stage, (), lambda: store.progress.cells(stage))


def _collect_checks(store: Store) -> Iterator[ChunkCheck]:
    cells = store.progress.cells("collect", damaged=0)
    done = [unit for unit, cell in enumerate(cells) if cell and store.members(unit)]
    for unit in [unit for unit in done if cells[unit] != RELEASED] if store.layout.keeps_features else ():
        for site in store.sites:
            for block in store.blocks(site):
                yield ChunkCheck("collect", (unit,), partial(store.features.read, site, block, unit))
    if not store.layout.keeps_moments:
        return
    yield ChunkCheck("collect", tuple(store.moments.not_folded(done)), partial(store.moments.check_counted_once, done))
    for part in store.moments.all_partial_sums():
        for site in store.sites if part.units else ():
            yield ChunkCheck("collect", part.units, partial(_read_partial_sums, part, site), part)


def _read_partial_sums(part: PartialSums, site: Site) -> None:
    for _ in part.read(site):
        pass


def run_checks(store: Store, stage: str) -> Iterator[ChunkCheck | Damage]:
    """Run every check of a stage; yields the check if it passed, else the damage. Cost: one read of everything."""
    for check in chunk_checks(store, stage):
        try:
            check.read()
        except StoreError as error:
            yield Damage(check, error)
        else:
            yield check


def forget_damaged(store: Store, stage: str) -> str:
    """Mark the damaged units of collect, covariance or attention as not done. Returns a sentence for the user.

    Raises the StoreError of damage that belongs to no unit, such as that of the prompts. Cost: one read of everything.
    """
    found = [damage for damage in run_checks(store, stage) if isinstance(damage, Damage)]
    for damage in found:
        if not damage.check.units:
            raise damage.error
    units = sorted({unit for damage in found for unit in damage.check.units})
    store.progress.mark(stage, units, 0)
    for name in sorted({damage.check.partial_sums.name for damage in found if damage.check.partial_sums}):
        store.delete(f"parts/{name}")
    if not found:
        return f"nothing of {stage} is damaged"
    return f"{len(units)} damaged units of {stage} are done again{listed([damage.error.message for damage in found], lines=True)}"
