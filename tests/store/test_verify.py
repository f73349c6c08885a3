"""Every chunk that progress marks as done is read; damaged units are marked as not done, and no others."""

import numpy as np
import pytest

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Cut, Decomposition, Store, pack_sums
from nullbooth_cli.store.verify import Damage, chunk_checks, forget_damaged, run_checks
from tests.support.stores import FREE, TIMED


@pytest.fixture
def full(store: Store) -> Store:
    """Every stage is done, with features and the sums of one process."""
    record = store.records["collect"]
    store.write_record("collect", {**record, "layout": {**record["layout"], "keep": "both"}})
    for unit, rows in enumerate(([0, 1], [2, 3], [4])):
        for site in store.sites:
            for block in store.blocks(site):
                shape = (len(block), len(rows), site.num_tokens, site.dim)
                store.features.write(site, block, rows, np.full(shape, unit, np.float32))
    part = store.moments.partial_sums("1-of-1.0")
    part.create(store.sites, 3)
    sums = {site: Sums(np.eye(site.dim), np.ones(site.dim), 1) for site in store.sites}
    part.checkpoint(((site, [pack_sums(sums[site])] * site.num_recorded(3)) for site in store.sites), range(3))
    store.progress.commit("collect", range(3))
    store.moments.create(store.sites, 3, store.layout)
    store.projectors.create(store.sites, {site.name: 1 for site in store.sites})
    for site in store.sites:
        for block in store.blocks(site):
            store.moments.write(site, block, [sums[site]] * len(block))
        dim = site.dim
        found = Decomposition(eigenvalues=np.ones(dim), eigenvectors=np.eye(dim), energies=np.ones((2, dim)), noise_floor=0.0)
        store.projectors.write_decomposition(site, 0, found)
        store.projectors.write_cut(site, 0, Cut(1, 0.0, None))
    store.progress.commit("covariance", range(4))
    store.progress.create("project", 2)
    store.progress.commit("project", range(2))
    for stage in ("schedule", "covariance", "project"):
        store.write_record(stage, {})
    return store


def damage(store: Store, key: str) -> None:
    path = store.path / key
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def damaged(store: Store, stage: str) -> list[tuple[tuple[int, ...], str]]:
    found = [result for result in run_checks(store, stage) if isinstance(result, Damage)]
    return [(result.check.units, result.error.message.split(": ")[1].split(" is ")[0]) for result in found]


@pytest.mark.parametrize(
    ("stage", "checks"), [("schedule", 2), ("collect", 17), ("covariance", 5), ("project", 5), ("attention", 0)]
)
def test_every_chunk_is_checked_and_a_sound_store_passes(full: Store, stage: str, checks: int) -> None:
    """Collect: rows, 3 units of FREE and of 3 timesteps of TIMED, the part of both sites and its units, the cells."""
    assert len(list(chunk_checks(full, stage))) == checks
    assert damaged(full, stage) == []


@pytest.mark.parametrize(
    ("stage", "key", "units"),
    [
        ("schedule", "schedule/sigmas/c.0", ()),
        ("collect", f"features/{TIMED.name}/c.1.2.0.0", (2,)),
        ("collect", f"parts/1-of-1.0/{FREE.name}/c.1.0.0.0", (0, 1, 2)),
        ("covariance", f"moments/{TIMED.name}/sum_xxT/c.2.0.0", (3,)),
        ("project", f"projectors/{FREE.name}/eigenvectors/c.0.0.0", ()),
        ("covariance", "progress/covariance/c.0", ()),
    ],
)
def test_one_flipped_bit_is_found_where_it_is(full: Store, stage: str, key: str, units: tuple[int, ...]) -> None:
    damage(full, key)
    name, _, chunk = key.rpartition("/")
    assert damaged(full, stage) == [(units, f"{name} chunk {chunk}")]


def test_units_of_damaged_chunks_are_done_again_and_no_others(full: Store) -> None:
    damage(full, f"features/{TIMED.name}/c.1.2.0.0")
    damage(full, f"features/{FREE.name}/c.0.0.0.0")
    said = forget_damaged(full, "collect")
    assert said.startswith("2 damaged units of collect are done again\n")
    assert full.progress.cells("collect").tolist() == [0, 1, 0]
    assert forget_damaged(full, "covariance") == "nothing of covariance is damaged"


def test_a_damaged_part_is_removed_with_its_units(full: Store) -> None:
    damage(full, f"parts/1-of-1.0/{FREE.name}/c.1.0.0.0")
    forget_damaged(full, "collect")
    assert full.progress.cells("collect").tolist() == [0, 0, 0]
    assert full.moments.all_partial_sums() == []


def test_damage_that_belongs_to_no_unit_is_raised(full: Store) -> None:
    (full.path / "prompts/text/c.0").unlink()
    with pytest.raises(StoreError, match=r"prompts/text chunk c\.0 is damaged: it is missing"):
        forget_damaged(Store.open(full.path, write=True), "collect")
