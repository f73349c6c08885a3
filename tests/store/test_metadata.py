"""Chunks and metadata belong to one place of one store: anywhere else, and with one edited value, they are damage there."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Cut, Store, pack_sums
from nullbooth_cli.store.metadata import group_document, parsed, sealed, unsealed
from tests.support.whole_store import PROMPTS, SITES, STEPS, whole_store

ELSEWHERE = "is damaged: it belongs to another place: another chunk, array or run"
EDITED = "is damaged: it was edited, or belongs to another place or run"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9,
)


def filled(path: Path) -> Store:
    """Every array there is, with equal sums in both slots, staged moments, and held-out prompts of the same schedule."""
    store = whole_store(path, "both", "float32")
    part = store.moments.partial_sums("1-of-1.0")
    part.checkpoint([(site, [pack_sums(sums) for sums in part.read(site)]) for site in SITES], part.units)
    for site in SITES:
        for block in store.blocks(site):
            store.moments.stage(site, block, list(store.moments.read(site, block)))
    heldout = store.inside_or_create(HELDOUT, {})
    heldout.write_schedule(STEPS)
    heldout.write_rows(0, PROMPTS)
    heldout.progress.create("collect", 3)
    heldout.progress.commit("collect", range(3))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled(tmp_path_factory.mktemp("whole") / "run.zarr")


@pytest.fixture(scope="module")
def strangers(whole: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Every object of another run with equal values, of the held-out prompts, and of this store before some of it was forced."""
    before = objects(whole.path)
    whole.projectors.create(SITES, {site.name: 1 for site in SITES})
    for site in SITES:
        whole.projectors.write_cut(site, 0, Cut(2, 0.5, None))
    whole.write_schedule(STEPS)
    other = filled(tmp_path_factory.mktemp("other") / "run.zarr")
    return {"other": objects(other.path), "heldout": objects(whole.path / "heldout"), "before": before}


def objects(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(store: Store, key: str) -> Any:
    """Read a chunk by its key."""
    name, _, index = key.rpartition("/c.")
    return store.arrays.read_chunk(name, tuple(map(int, index.split("."))))


def placed(store: Store, key: str, data: bytes) -> Iterator[None]:
    """Have other bytes under a key until the next step."""
    path = store.path / key
    own = path.read_bytes()
    path.write_bytes(data)
    yield
    path.write_bytes(own)


def test_a_chunk_in_the_place_of_any_other_is_damage_of_that_place(whole: Store, strangers: dict[str, dict[str, bytes]]) -> None:
    """Of the same length: exchanged between sites, slots, timesteps, units, arrays, stages, texts and runs."""
    store, own = Store.open(whole.path), objects(whole.path)
    chunks = [key for key in own if "/c." in key and not key.startswith("heldout/")]
    found = dict.fromkeys(("own", *strangers), 0)
    for key in chunks:
        read(store, key)
        for kind, those in {"own": own, **strangers}.items():
            for other, data in those.items():
                if "/c." not in other or len(data) != len(own[key]) or (other == key and data == own[key]):
                    continue
                for _ in placed(store, key, data):
                    with pytest.raises(StoreError) as caught:
                        read(store, key)
                name, _, index = key.rpartition("/")
                assert caught.value.message == f"{store.url}: {name} chunk {index} {ELSEWHERE}", other
                assert caught.value.rerun is not None
                found[kind] += 1
    assert len({key.split("/")[0] for key in chunks}) == 9  # every group
    assert min(found.values()) > 20, found


def test_metadata_in_the_place_of_any_other_are_damage_of_that_place(
    whole: Store, strangers: dict[str, dict[str, bytes]]
) -> None:
    own = objects(whole.path)
    documents = [key for key in own if key.endswith("/zarr.json") and not key.startswith("heldout/")]
    for number, key in enumerate(documents):
        others = [data for other, data in own.items() if other.endswith("zarr.json") and other != key]
        others += [those[key] for kind, those in strangers.items() if kind != "before" and key in those]
        for data in others[number % 20 :: 20] + others[-2:]:
            for _ in placed(whole, key, data):
                assert_damaged(whole, key, EDITED)


def assert_damaged(store: Store, key: str, why: str) -> None:
    """Each way to read a document names its file and the run that rebuilds it: a repair, if it belongs to a single unit."""
    name = key.removesuffix("/zarr.json")
    by_repair = name.startswith(("parts/", "attention/")) and name.count("/") == 2
    for use in (Store.open(store.path).arrays.find, Store.open(store.path).arrays.group_attributes):
        with pytest.raises(StoreError) as caught:
            use(name)
        assert f"{store.url}: {key} {why}" in caught.value.message
        assert caught.value.rerun is not None
        assert (caught.value.rerun.force, caught.value.rerun.repair) == (not by_repair, by_repair)


def of_site(document: dict[str, Any]) -> None:
    sites = document["attributes"]["sites"]
    sites[0]["weights"], sites[1]["weights"] = sites[1]["weights"], sites[0]["weights"]


EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "weights of two sites": ("zarr.json", of_site),
    "settings of a record": ("zarr.json", lambda d: d["attributes"]["records"]["collect"].update(fingerprint="1")),
    "layout": ("zarr.json", lambda d: d["attributes"]["records"]["collect"]["layout"].update(batch_size=3)),
    "config": ("zarr.json", lambda d: d["attributes"]["config"].update(keep="features")),
    "slot of a part": ("parts/1-of-1.0/zarr.json", lambda d: d["attributes"].update(slot=1 - d["attributes"]["slot"])),
    "units of a part": ("parts/1-of-1.0/zarr.json", lambda d: d["attributes"]["units"].pop()),
    "dtype": (f"features/{SITES[0].name}/zarr.json", lambda d: d.update(data_type="int32")),
    "torch dtype": (f"features/{SITES[0].name}/zarr.json", lambda d: d["attributes"].update(torch_dtype="bfloat16")),
    "shape of the schedule": ("schedule/timesteps/zarr.json", lambda d: d["shape"].__setitem__(0, 2)),
    "number of prompts": ("prompts/text/zarr.json", lambda d: d["shape"].__setitem__(0, 4)),
    "number of units": ("progress/collect/zarr.json", lambda d: d["shape"].__setitem__(0, 2)),
    "chunks of moments": (
        f"moments/{SITES[0].name}/count/zarr.json",
        lambda d: d["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 1),
    ),
    "words of a map": (f"attention/{PROMPTS[0].id}/image/zarr.json", lambda d: d["attributes"]["words"].reverse()),
    "pace": ("progress/zarr.json", lambda d: d["attributes"].update(collect_seconds_per_unit=1.0)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_one_edited_value_is_damage_of_its_file(whole: Store, edit: str) -> None:
    key, change = EDITS[edit]
    document = json.loads((whole.path / key).read_text())
    change(document)
    for _ in placed(whole, key, json.dumps(document).encode()):
        if key == "zarr.json":
            with pytest.raises(StoreError) as caught:
                Store.open(whole.path)
            assert f"{whole.url}: zarr.json {EDITED}" in caught.value.message
        else:
            assert_damaged(whole, key, EDITED)


UNREADABLE = {b"": "it is empty", b"{": "it is not JSON", b"\xff": "it is not JSON", b"7": "it does not describe"}


@pytest.mark.parametrize(("text", "why"), UNREADABLE.items())
def test_metadata_that_cannot_be_read_are_damage_of_their_file(whole: Store, text: bytes, why: str) -> None:
    for key in ("schedule/zarr.json", "schedule/sigmas/zarr.json", f"moments/{SITES[0].name}/count/zarr.json"):
        for _ in placed(whole, key, text):
            assert_damaged(whole, key, f"is damaged: {why}")


def test_zarr_reads_every_array_as_we_do(whole: Store, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "copy.zarr")
    store, group = Store.open(tmp_path / "copy.zarr"), zarr.open_group(tmp_path / "copy.zarr", mode="r")
    names = {name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}
    assert {name.split("/")[0] for name in names} >= {"features", "parts", "staged", "heldout", "attention", "prompts"}
    for name in names - {name for name in names if name.startswith("heldout/")}:
        array: Any = group[name]
        ours = store.arrays.array(name)
        assert (array.shape, array.chunks, array.attrs["id"]) == (ours.shape, ours.chunks, ours.id)
        values = np.asarray(array[:])
        for index in itertools.product(*(range(-(-n // c)) for n, c in zip(ours.shape, ours.chunks, strict=True))):
            if not (store.path / f"{name}/c.{'.'.join(map(str, index))}").exists():
                continue
            chunk = store.arrays.read_chunk(name, index)
            where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, ours.chunks, strict=True))
            np.testing.assert_array_equal(values[where], chunk[tuple(slice(0, n) for n in values[where].shape)])


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(max_size=5), st.integers(0, 2**32 - 1))
def test_a_sealed_document_comes_back_and_with_one_changed_byte_none_does(
    attributes: dict[str, Any], path: str, seed: int
) -> None:
    attributes.pop("seal", None)
    document, draw = group_document(attributes), np.random.default_rng(seed)
    data = sealed(document, path, "id")
    assert unsealed(parsed(data), path, "id") == json.loads(json.dumps(document))
    for place, store_id in ((f"{path}/", "id"), (path, "di")):
        with pytest.raises(ValueError, match="it was edited, or belongs to another place"):
            unsealed(parsed(data), place, store_id)
    changed = bytearray(data)
    changed[draw.integers(len(data))] ^= draw.integers(1, 256)
    try:
        assert unsealed(parsed(bytes(changed)), path, "id") == json.loads(json.dumps(document))
        assert json.loads(changed) == json.loads(data)  # white space, or the case of a digit in an escape
    except ValueError as error:
        assert str(error) in {"it was edited, or belongs to another place or run", "it is not JSON"}  # noqa: PT017  # or neither
