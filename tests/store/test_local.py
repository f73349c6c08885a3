"""A folder: the order of a commit, one writer, no trace of a kill, and errors of the system in our words."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store import Store
from nullbooth_cli.store.local import LocalBacking
from tests.support.stores import write_features


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
    write_features(store, 0)
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
        write_features(store, 0)
    monkeypatch.undo()
    assert not list(store.path.rglob("*.partial"))
    write_features(store, 0)


def test_objects_come_back_and_are_removed(tmp_path: Path) -> None:
    backing = LocalBacking(tmp_path / "place")
    assert not backing.exists()
    assert backing.get("a/b") is None
    backing.put("a/b", [b"one", memoryview(b"two")])
    backing.put_many([(f"a/{number}", [bytes([number])]) for number in range(20)])
    assert [data.tobytes() for data in backing.get_many([f"a/{number}" for number in range(20)]) if data is not None] == [
        bytes([number]) for number in range(20)
    ]
    assert backing.nbytes("a") == 26
    assert backing.is_foreign()
    backing.delete("a/b")
    backing.delete("a/b")
    assert backing.get("a/b") is None
    assert backing.inside("a").get("3") is not None


def test_a_probe_leaves_nothing_and_makes_no_folder(tmp_path: Path) -> None:
    backing = LocalBacking(tmp_path / "not/there")
    backing.check_writable()
    backing.check_free()
    assert list(tmp_path.rglob("*")) == []
