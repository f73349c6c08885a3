"""Every chunk that progress marks as done is read; damaged units are marked as not done, and no others."""

import errno
import itertools
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.report.status import verify_store
from nullbooth_cli.settings.config import STAGES
from nullbooth_cli.store import Cut, Decomposition, Store, files, pack_sums
from nullbooth_cli.store.backing import UnreadableError
from nullbooth_cli.store.pieces import Damage, Piece, pieces, require_whole
from nullbooth_cli.store.verify import forget_damaged, run_checks
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
    store.progress.commit("decomposition", range(2))
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
    return [(result.units, result.error.message.split(": ")[1].split(" is ")[0]) for result in found]


@pytest.mark.parametrize(
    ("stage", "checks"), [("schedule", 3), ("collect", 18), ("covariance", 12), ("project", 12), ("attention", 0)]
)
def test_every_chunk_is_checked_and_a_sound_store_passes(full: Store, stage: str, checks: int) -> None:
    """Collect: three arrays of texts, 3 units of FREE and of 3 timesteps of TIMED, the part of both sites and its units."""
    assert len(list(pieces(full, stage))) == checks
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


def test_every_array_that_a_stage_writes_is_read_by_a_check(full: Store) -> None:
    """All files of the store, but for the slot of partial sums that is not in force."""
    chunks = [path for path in sorted(full.path.rglob("c.*")) if not path.match("parts/*/*/c.0.*")]
    arrays = [path for path in sorted(full.path.rglob("zarr.json")) if list(path.parent.glob("c.*"))]
    assert {path.parent for path in chunks} == {path.parent for path in arrays}
    for path in chunks + arrays:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        name = path.relative_to(full.path).as_posix()
        words = name if path in arrays else f"{path.parent.relative_to(full.path)} chunk {path.name} is damaged"
        opened = Store.open(full.path)
        said = [damage.error.message for stage in STAGES for damage in run_checks(opened, stage) if isinstance(damage, Damage)]
        assert any(words in message for message in said), (name, said)
        path.write_bytes(before)


def test_one_damaged_file_does_not_hide_the_others(full: Store) -> None:
    """Metadata of progress, of the schedule, of partial sums; a text, a chunk, and a folder in a chunk's place."""
    lost = [
        "progress/collect/zarr.json",
        "schedule/timesteps/zarr.json",
        "prompts/text/c.0",
        f"features/{TIMED.name}/c.1.2.0.0",
        f"parts/1-of-1.0/{FREE.name}/zarr.json",
        f"moments/{TIMED.name}/sum_x/c.1.0",
        f"projectors/{FREE.name}/null_dim/zarr.json",
        f"projectors/{TIMED.name}/energies/c.0.0.0",
    ]
    for name in lost:
        (full.path / name).write_bytes(b"damage")
    (full.path / f"moments/{FREE.name}/count/c.0").unlink()
    (full.path / f"moments/{FREE.name}/count/c.0").mkdir()
    found = verify_store(Store.open(full.path))
    said = "\n".join(damage.error for damage in found.damaged)
    for name in (*lost, f"moments/{FREE.name}/count/c.0"):
        array, _, chunk = name.rpartition("/")
        assert name in said or f"{array} chunk {chunk}" in said, said
    assert len(found.damaged) == len({damage.error for damage in found.damaged})


def test_both_of_two_exchanged_chunks_are_named(full: Store) -> None:
    """27 pairs of equal length, among all chunks that are read: of sites, units, timesteps, arrays and stages."""
    checks = [check for stage in STAGES for check in run_checks(full, stage)]
    size_of = {check.key: (full.path / check.key).stat().st_size for check in checks if isinstance(check, Piece) and check.key}
    pairs = [pair for pair in itertools.combinations(size_of, 2) if size_of[pair[0]] == size_of[pair[1]]]
    for pair in random.Random(0).sample(pairs, 27):
        one, other = (full.path / key for key in pair)
        before = one.read_bytes(), other.read_bytes()
        one.write_bytes(before[1])
        other.write_bytes(before[0])
        said = [f"{array} chunk {chunk}" for array, _, chunk in (key.rpartition("/") for key in pair)]
        assert sorted(name for stage in STAGES for _, name in damaged(full, stage)) == sorted(said)
        one.write_bytes(before[0])
        other.write_bytes(before[1])
    assert not [name for stage in STAGES for _, name in damaged(full, stage)]


GROUPS = {
    "schedule": ["schedule"],
    "collect": ["progress", "prompts", "features", "parts"],
    "covariance": ["moments", f"moments/{TIMED.name}"],
    "project": ["projectors", f"projectors/{FREE.name}"],
}


@pytest.mark.parametrize("stage", GROUPS)
def test_groups_without_values_are_named_and_made_again(full: Store, stage: str) -> None:
    for name in GROUPS[stage]:
        file = full.path / name / "zarr.json"
        for spoil in (file.unlink, lambda file=file: file.write_bytes(b"")):
            spoil()
            assert damaged(full, stage) == [((), f"{name}/zarr.json")]
            full.arrays.make_groups([name])
            assert damaged(full, stage) == []
            spoil()
            if stage in ("collect", "covariance"):
                assert f"0 damaged units of {stage} are done again" in forget_damaged(full, stage)
                assert damaged(full, stage) == []
            full.arrays.make_groups([name])
    assert full.progress.done("collect").all()


def test_a_file_that_cannot_be_read_is_listed_but_no_unit_is_done_again(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"moments/{TIMED.name}/sum_xxT/c.2.0.0"
    real = files.read

    def refusing(path: Path) -> Any:
        if path.match(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(files, "read", refusing)
    assert [damage.error for damage in verify_store(full).damaged] == [f"cannot read {full.path / name}: Permission denied"]
    with pytest.raises(UnreadableError):
        forget_damaged(full, "covariance")
    assert full.progress.done("covariance").all()


@pytest.mark.parametrize(
    ("stage", "lost", "named"),
    [
        ("schedule", "schedule/sigmas", "no array schedule/sigmas"),
        ("collect", "prompts/images", "no array prompts/images"),
        ("collect", "features", f"features/{FREE.name}"),
        ("collect", f"features/{TIMED.name}/c.2.1.0.0", f"features/{TIMED.name} chunk c.2.1.0.0 is damaged: it is missing"),
        ("collect", "parts", "missing in the partial sums"),
        ("collect", f"parts/1-of-1.0/{TIMED.name}", f"no array parts/1-of-1.0/{TIMED.name}"),
        ("covariance", "moments", f"no array moments/{FREE.name}/sum_xxT"),
        ("covariance", f"moments/{TIMED.name}/count/c.1", f"moments/{TIMED.name}/count chunk c.1 is damaged: it is missing"),
        ("covariance", "progress/covariance", "no array progress/covariance"),
        ("project", "progress/decomposition", "no array progress/decomposition"),
        ("project", "projectors", f"no array projectors/{FREE.name}/"),
        ("project", f"projectors/{FREE.name}/eigenvectors", f"no array projectors/{FREE.name}/eigenvectors"),
    ],
)
def test_what_is_not_there_is_named_from_a_listing(full: Store, stage: str, lost: str, named: str) -> None:
    cells = {name: full.progress.cells(name) for name in ("collect", "covariance", "decomposition", "project")}
    for each in ("schedule", "collect", "covariance", "project"):
        require_whole(full, each, cells)
    path = full.path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    opened = Store.open(full.path)
    with pytest.raises(StoreError, match=re.escape(named)):
        require_whole(opened, stage, cells)


def test_progress_that_is_shorter_than_its_units_is_damage(full: Store) -> None:
    full.progress.create("covariance", 3)
    with pytest.raises(StoreError, match="progress/covariance has 3 cells for 4 units"):
        require_whole(full, "covariance", {})
