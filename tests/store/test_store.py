"""The store against damage, strangers, a second writer and a full disk."""

import errno
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt, Site, Step, Sums
from nullbooth_cli.errors import Rerun, ResourceError, StoreError
from nullbooth_cli.store import Layout, Store, create_collection
from nullbooth_cli.store.format import FORMAT_VERSION
from nullbooth_cli.tensors import pack, unpack
from tests.support.builders import features_at

STEP_BYTES = 8 * 3 * 3  # of the moments of a timestep of TIMED, which are more than its features
FREE = Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "mid.attn2.to_v.weight"), True, 4, 6)
TIMED = Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 2, 3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five prompts, two a unit, three steps, float32."""
    made = Store.create(tmp_path / "run.zarr", {"model": "toy"})
    begin(made, (FREE, TIMED), 3, 5)
    return made


def begin(store: Store, sites: tuple[Site, ...], num_steps: int, num_rows: int, dtype: str = "float32", **how: Any) -> None:
    """By default every timestep has a chunk of its own."""
    how.setdefault("chunk_bytes", STEP_BYTES)
    layout = Layout("features", 2, dtype, **how)
    create_collection(store, sites=sites, num_steps=num_steps, num_rows=num_rows, layout=layout)
    store.write_rows(0, [Prompt(f"prompt {row}") for row in range(num_rows)])
    store.write_record("collect", {"layout": vars(layout)})
    store.write_schedule(tuple(Step(t, f"step_{t}", 999.0 - t, 1.0) for t in range(num_steps)))


def fill(store: Store, unit: int, site: Site = TIMED, step: int = 0) -> np.ndarray:
    count = 1 if unit == 2 else 2
    values = np.random.default_rng(unit).standard_normal((count, site.num_tokens, site.dim)).astype(np.float32)
    store.features.write(site, range(step, step + 1), [2 * unit + i for i in range(count)], values[None])
    return values


def test_the_layout_on_disk(store: Store) -> None:
    group = zarr.open_group(store.path, mode="r")
    timed, free = group["features/mid.attn2.q"], group["features/mid.attn2.k"]
    assert (timed.shape, timed.chunks) == ((3, 5, 2, 3), (1, 2, 2, 3))
    assert free.shape[0] == 1
    assert [type(codec).__name__ for codec in timed.metadata.codecs] == ["BytesCodec", "Crc32cCodec"]
    assert np.isnan(timed.fill_value)
    assert group["progress/collect"].chunks == (1,)


def test_features_come_back_whole_and_in_parts(store: Store) -> None:
    written = [fill(store, unit) for unit in (2, 0, 1)]
    for unit, values in zip((2, 0, 1), written, strict=True):
        np.testing.assert_array_equal(features_at(store, TIMED, 0, unit), values)


@settings(deadline=None)
@given(num_steps=st.integers(1, 9), num_rows=st.integers(1, 7), together=st.integers(1, 10), seed=st.integers(0, 2**32 - 1))
def test_timesteps_that_share_a_chunk_come_back_one_by_one(num_steps: int, num_rows: int, together: int, seed: int) -> None:
    """Whatever number of timesteps a chunk holds, features, moments and counts of each are the ones that were written."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((num_steps, num_rows, 2, 3)).astype(np.float32)
    sums = [Sums(draw.standard_normal((3, 3)), draw.standard_normal(3), int(draw.integers(1, 99))) for _ in range(num_steps)]
    with tempfile.TemporaryDirectory() as folder:
        made = Store.create(Path(folder) / "run.zarr", {})
        begin(made, (TIMED,), num_steps, num_rows, chunk_bytes=together * STEP_BYTES + STEP_BYTES // 2)
        made.moments.create((TIMED,), num_steps, made.layout)
        blocks = made.blocks(TIMED)
        assert [t for block in blocks for t in block] == list(range(num_steps))
        assert len(blocks) == -(-num_steps // together)
        assert {len(block) for block in blocks[:-1]} <= {len(blocks[0])}
        assert len(blocks) * len(blocks[0]) - num_steps < len(blocks)  # so much of the last chunk is wasted
        for block in blocks:
            for unit in range(-(-num_rows // 2)):
                rows = range(num_rows)[2 * unit : 2 * unit + 2]
                made.features.write(TIMED, block, rows, features[block.start : block.stop, rows.start : rows.stop])
            made.moments.write(TIMED, block, sums[block.start : block.stop])
            made.moments.stage(TIMED, block, sums[block.start : block.stop])
        group = zarr.open_group(made.path, mode="r")
        np.testing.assert_array_equal(group["features/mid.attn2.q"][:], features)
        np.testing.assert_array_equal(group["moments/mid.attn2.q/sum_xxT"][:], [of_step[0] for of_step in sums])
        np.testing.assert_array_equal(made.moments.counts(TIMED), [of_step[2] for of_step in sums])
        chosen = draw.permutation(num_steps)[:3].tolist()
        for t, found in zip(chosen, made.moments.read(TIMED, chosen), strict=True):
            np.testing.assert_array_equal(features_at(made, TIMED, t, 0), features[t, :2])
            staged = made.moments.read_staged(TIMED, blocks[t // len(blocks[0])])[t % len(blocks[0])]
            for ours, copy, expected in zip(found, staged, sums[t], strict=True):
                np.testing.assert_array_equal(ours, expected)
                np.testing.assert_array_equal(copy, expected)


def test_zeros_are_stored_too(store: Store) -> None:
    store.features.write(TIMED, range(1, 2), [0, 1], np.zeros((1, 2, 2, 3), np.float32))
    assert (store.path / "features/mid.attn2.q/c.1.0.0.0").exists()
    assert (features_at(store, TIMED, 1, 0) == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: str) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    begin(store, (TIMED,), 1, 2, dtype, compression="lz4")
    values = torch.randn(2, 2, 3).to(getattr(torch, dtype))
    store.features.write(TIMED, range(1), [0, 1], pack(values, dtype)()[None])
    assert store.layout == Layout("features", 2, dtype, "lz4", STEP_BYTES)
    assert torch.equal(unpack(features_at(store, TIMED, 0, 0), dtype), values)


def test_schedule_prompts_sites_and_records_come_back(store: Store) -> None:
    steps = (Step(0, "alpha_00_9e2", 999.0, 14.6), Step(1, "alpha_01_5e2", 517.25, 1.5))
    prompts = (Prompt("a dog"), Prompt("ein Hündchen, 犬"))
    store.write_schedule(steps)
    store.write_schedule(steps)
    store.delete("prompts")
    store.write_rows(0, prompts)
    store.write_record("collect", {"fingerprint": "x"})
    again = Store.open(store.path)
    assert again.schedule() == steps
    assert again.prompts() == prompts
    assert again.sites == (FREE, TIMED)
    assert again.records == {"collect": {"fingerprint": "x"}}


def test_the_order_of_a_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk, fdatasync, rename, directory, and only then the progress cell, the same way."""
    happened: list[tuple[str, str]] = []

    def watch(function: str, of: Callable[..., str]) -> None:
        real = getattr(os, function)

        def watched(*arguments, **options):
            happened.append((function, of(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, function, watched)

    def place(path: str) -> str:
        path = path.removeprefix(f"{store.path}/")
        return path.rsplit(".", 2)[0] if path.endswith(".partial") else path

    watch("fdatasync", lambda fd: place(os.readlink(f"/proc/self/fd/{fd}")))
    watch("fsync", lambda fd: place(os.readlink(f"/proc/self/fd/{fd}")))
    watch("replace", lambda old, new: place(str(new)))
    fill(store, 0)
    store.progress.commit("collect", 0)
    chunk, cell = "features/mid.attn2.q/c.0.0.0.0", "progress/collect/c.0"
    assert happened[:2] == [("fdatasync", chunk), ("replace", chunk)]
    folders = happened[2 : happened.index(("fdatasync", cell))]
    assert ("fsync", "features/mid.attn2.q") in folders
    assert {function for function, _ in folders} == {"fsync"}
    last = happened[2 + len(folders) :]
    assert last[:2] == [("fdatasync", cell), ("replace", cell)]
    assert ("fsync", "progress/collect") in last[2:]
    assert {function for function, _ in last[2:]} == {"fsync"}
    np.testing.assert_array_equal(store.progress.done("collect"), [True, False, False])


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_zarr_reads_what_we_write_and_we_read_what_zarr_writes(tmp_path: Path, compression: str | None) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    begin(store, (TIMED,), 3, 4, "float16", compression=compression)
    values = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float16)
    store.features.write(TIMED, range(1, 2), [2, 3], values[None])
    array = zarr.open_group(store.path, mode="r+")["features/mid.attn2.q"]
    np.testing.assert_array_equal(array[1, 2:4], values)
    array[2, 0:2] = values
    np.testing.assert_array_equal(features_at(store, TIMED, 2, 0), values)
    if compression is None:
        ours, theirs = (store.path / f"features/mid.attn2.q/c.{i}.0.0" for i in ("1.1", "2.0"))
        assert ours.read_bytes() == theirs.read_bytes()


class TestDamage:
    """Every kind of damage is an error that names the array, the prompts and the way out; none reads as data."""

    def chunk(self, store: Store) -> Path:
        fill(store, 1)
        return store.path / "features/mid.attn2.q/c.0.1.0.0"

    def assert_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"features/mid\.attn2\.q chunk c\.0\.1\.0\.0 is damaged") as caught:
            Store.open(store.path).features.read(TIMED, range(1), 1)
        assert caught.value.rerun == Rerun("collect", repair=True, store=str(store.path))

    def test_one_flipped_bit(self, store: Store) -> None:
        path = self.chunk(store)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.assert_refused(store)

    @pytest.mark.parametrize("keep", [0, 10, -4])
    def test_truncated(self, store: Store, keep: int) -> None:
        path = self.chunk(store)
        path.write_bytes(path.read_bytes()[:keep])
        self.assert_refused(store)

    def test_missing(self, store: Store) -> None:
        self.chunk(store).unlink()
        self.assert_refused(store)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(StoreError, match="is not a Zarr v3 group"):
        Store.open(tmp_path / "folder")
    with pytest.raises(StoreError, match="is not a nullbooth store"):
        Store.create(tmp_path / "folder", {})
    assert (tmp_path / "folder" / "file").read_text() == "mine"


def test_a_store_of_another_project(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "z", attributes={"format": "ome"})
    with pytest.raises(StoreError, match="not a nullbooth store"):
        Store.open(tmp_path / "z")


def test_a_newer_format(store: Store) -> None:
    path = store.path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["format_version"] = FORMAT_VERSION + 1
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"has store format {FORMAT_VERSION + 1}; this nullbooth reads {FORMAT_VERSION}"):
        Store.open(store.path)


def test_an_older_format(store: Store) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 1'))
    with pytest.raises(StoreError, match="store format 1, of an earlier nullbooth"):
        Store.open(store.path)


def _hold(path: str, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with Store.open(path, write=True).lock():
        held.set()
        done.wait(30)


def test_one_writer_at_a_time_and_the_other_is_named(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(store.path), held, done))
    holder.start()
    assert held.wait(60)
    with pytest.raises(StoreError, match=f"in use by process {holder.pid} on "), store.lock():
        pass
    holder.kill()
    holder.join()
    with store.lock():
        pass


def test_leftovers_of_a_kill_are_swept(store: Store) -> None:
    leftover = store.path / "features/mid.attn2.q/c.0.0.0.abc.partial"
    leftover.write_text("torn")
    with store.lock():
        assert not leftover.exists()


def test_a_full_disk_is_a_resource_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceError, match="no room left"):
        fill(store, 0)
    monkeypatch.undo()
    assert not list(store.path.rglob("*.partial"))
    fill(store, 0)
