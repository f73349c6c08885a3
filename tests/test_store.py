"""The store against damage, strangers, a second writer and a full disk."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.features import pack, unpack
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.steps import Step
from nullbooth_cli.store import DurableLocalStore, Site, Store

FREE = Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "mid.attn2.to_v.weight"), True, 4, 6)
TIMED = Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 2, 3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five prompts, two a unit, three steps, float32."""
    made = Store.create(tmp_path / "run.zarr", {"model": "toy"})
    made.create_features((FREE, TIMED), 3, 5, 2, "float32", None)
    return made


def fill(store: Store, unit: int, site: Site = TIMED, step: int = 0) -> np.ndarray:
    count = 1 if unit == 2 else 2
    values = np.random.default_rng(unit).standard_normal((count, site.num_tokens, site.dim)).astype(np.float32)
    store.write_features(site, step, unit, values)
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
        np.testing.assert_array_equal(store.read_features(TIMED, 0, unit), values)


def test_zeros_are_stored_too(store: Store) -> None:
    store.write_features(TIMED, 1, 0, np.zeros((2, 2, 3), np.float32))
    assert (store.path / "features/mid.attn2.q/c.1.0.0.0").exists()
    assert (store.read_features(TIMED, 1, 0) == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: str) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    store.create_features((TIMED,), 1, 2, 2, dtype, "lz4")
    values = torch.randn(2, 2, 3).to(getattr(torch, dtype))
    store.write_features(TIMED, 0, 0, pack(values, dtype))
    assert store.feature_layout() == (2, dtype)
    assert torch.equal(unpack(store.read_features(TIMED, 0, 0), dtype), values)


def test_schedule_prompts_sites_and_records_come_back(store: Store) -> None:
    steps = (Step(0, "alpha_00_9e2", 999.0, 14.6), Step(1, "alpha_01_5e2", 517.25, 1.5))
    prompts = (Prompt("a dog"), Prompt("ein Hündchen, 犬"))
    store.write_schedule(steps)
    store.write_schedule(steps)
    store.write_prompts(prompts)
    store.write_record("collect", {"fingerprint": "x"})
    again = Store.open(store.path)
    assert again.schedule() == steps
    assert again.prompts() == prompts
    assert again.sites == (FREE, TIMED)
    assert again.records == {"collect": {"fingerprint": "x"}}


def test_progress_is_marked_after_the_data_is_durable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    sync, put = DurableLocalStore.sync, DurableLocalStore._set

    async def recorded_set(self, key, value, exclusive=False):
        happened.append(key)
        await put(self, key, value, exclusive=exclusive)

    monkeypatch.setattr(DurableLocalStore, "_set", recorded_set)
    monkeypatch.setattr(DurableLocalStore, "sync", lambda self: (happened.append("sync"), sync(self))[1])
    fill(store, 0)
    store.commit("collect", 0)
    assert happened == ["features/mid.attn2.q/c.0.0.0.0", "sync", "progress/collect/c.0"]
    np.testing.assert_array_equal(store.progress("collect"), [True, False, False])


def test_commit_flushes_every_file_and_its_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 0)
    flushed: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    store.commit("collect", 0)
    assert str(store.path / "features/mid.attn2.q/c.0.0.0.0") in flushed
    assert str(store.path / "features/mid.attn2.q") in flushed


class TestDamage:
    """Every kind of damage is an error that names the array, the prompts and the way out; none reads as data."""

    def chunk(self, store: Store) -> Path:
        fill(store, 1)
        return store.path / "features/mid.attn2.q/c.0.1.0.0"

    def assert_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"features/mid\.attn2\.q\[0, prompts 2\.\.\] is damaged") as caught:
            Store.open(store.path).read_features(TIMED, 0, 1)
        assert "nullbooth collect" in caught.value.hint

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
    document["attributes"]["format_version"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="has store format 2; this nullbooth reads up to 1"):
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
    async def full(self, key, value, exclusive=False):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DurableLocalStore, "_set", full)
    with pytest.raises(ResourceError, match="no room left"):
        fill(store, 0)
