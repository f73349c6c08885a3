"""A folder: the order of a commit, one writer, no trace of a kill, and errors of the system in our words."""

import errno
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store import Store, files, locks, shard_locked
from nullbooth_cli.store.backing import UnreadableError
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


@pytest.mark.parametrize(
    "name",
    ["run.zarr", "run.zarr/", "link.zarr", "folder/run.zarr", "run.zarr/heldout", "link.zarr/heldout", "held", "x/../run.zarr"],
)
def test_a_place_has_one_lock_by_any_name(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.path.parent)
    store.inside_or_create(HELDOUT, {})
    for link, target in (("link.zarr", "run.zarr"), ("folder", "."), ("held", "link.zarr/heldout")):
        Path(link).symlink_to(target)
    Path("x").mkdir()
    monkeypatch.setattr(locks, "PROBE_SECONDS", 0.1)
    other = LocalBacking(Path(name))
    for one, two in ((store.arrays.backing, other), (other, store.arrays.backing)):
        with one.lock(), pytest.raises(StoreError, match=f"is in use by process {os.getpid()} on "), two.lock():
            pass
    with shard_locked(other, 1, 2):
        assert store.arrays.backing.other_locks() == other.other_locks() == ["1-of-2"]
        with pytest.raises(StoreError, match="in use by"), store.lock():
            pass
    assert sorted(path.name for path in Path().rglob("*.lock*")) == ["run.zarr.lock", "run.zarr.lock.1-of-2"]


def test_a_link_to_nothing_yet_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(tmp_path / "later" / "run.zarr")
    one, other = LocalBacking(tmp_path / "link.zarr"), LocalBacking(tmp_path / "later/run.zarr")
    with one.lock(), pytest.raises(StoreError, match="is in use by"), other.lock():
        pass


def test_a_mount_point_is_refused_because_its_lock_would_be_elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [SimpleNamespace(mountpoint=str(store.path))]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    with pytest.raises(StoreError, match=r"run\.zarr is a mount point"), store.lock():
        pass
    mounts[0].mountpoint = str(store.path.parent)
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


SYSTEM = [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG]
KEY = "features/mid.attn2.q/c.0.0.0.0"
# What meets the system's refusal, and the call of the system that refuses.
REFUSED: dict[str, tuple[object, str, Callable[[Store], object]]] = {
    "read": (Path, "open", lambda store: store.arrays.backing.get(KEY)),
    "reads": (Path, "open", lambda store: store.arrays.backing.get_many([KEY])),
    "metadata": (Path, "open", lambda store: Store.open(store.path)),
    "exists": (Path, "open", lambda store: Store.exists(store.path)),
    "anything there": (os, "stat", lambda store: store.arrays.backing.exists()),
    "foreign": (Path, "iterdir", lambda store: store.arrays.backing.is_foreign()),
    "keys": (os, "scandir", lambda store: store.arrays.backing.keys("features")),
    "nbytes": (os, "scandir", lambda store: store.nbytes("features")),
    "notes": (Path, "iterdir", lambda store: store.heartbeats.read()),
    "children": (Path, "iterdir", lambda store: store.moments.all_partial_sums()),
    "free": (os, "statvfs", lambda store: store.free_nbytes()),
    "put": (os, "open", lambda store: store.arrays.backing.put(KEY, [b"new"])),
    "flush": (os, "fdatasync", lambda store: store.arrays.backing.put(KEY, [b"new"])),
    "rename": (os, "replace", lambda store: store.arrays.backing.put(KEY, [b"new"])),
    "sync": (os, "fsync", lambda store: store.arrays.backing.sync()),
    "sync folder": (os, "open", lambda store: store.arrays.backing.sync()),
    "delete": (Path, "unlink", lambda store: store.arrays.backing.delete(KEY)),
    "delete group": (shutil, "rmtree", lambda store: store.delete("features")),
    "attributes": (os, "replace", lambda store: store.write_config({})),
}


@pytest.mark.parametrize("use", REFUSED)
def test_what_the_system_refuses_is_a_resource_error_and_never_absence(
    store: Store, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    store = Store.open(store.path, write=True)
    store.moments.partial_sums("1-of-1.0").create([], 3)
    write_features(store, 0)
    before = (store.path / KEY).read_bytes()
    owner, name, call = REFUSED[use]
    for number in SYSTEM:

        def refusing(path: object, *_: object, number: int = number, **__: object) -> object:
            raise OSError(number, os.strerror(number), os.fspath(path) if isinstance(path, str | Path) else None)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, refusing)
            with pytest.raises(ResourceError, match=re.escape(str(store.path))) as refused:
                call(store)
        assert any(word in refused.value.message for word in (os.strerror(number), "no room left", "quota is used up"))
        assert (store.path / KEY).read_bytes() == before
    assert not list(store.path.rglob("*.partial"))


def test_a_read_that_fails_half_way_is_no_short_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(store, 0)
    handle = (store.path / KEY).open("rb", buffering=0)

    class Failing:
        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            handle.close()

        def fileno(self) -> int:
            return handle.fileno()

        def readinto(self, buffer: memoryview) -> int:
            if buffer.nbytes > 8:
                return handle.readinto(buffer[: buffer.nbytes - 8])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    with pytest.raises(UnreadableError, match=rf"cannot read .*{re.escape(KEY)}: Input/output error"):
        store.arrays.backing.get(KEY)


@pytest.mark.parametrize(
    ("place", "why"),
    [("/proc/run.zarr", "No such file"), ("/dev/null/run.zarr", "File exists"), ("file/run.zarr", "File exists")],
)
def test_a_place_that_takes_no_files_is_named(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    backing = LocalBacking(tmp_path / place)
    assert not backing.exists()
    for write in (backing.check_writable, lambda: backing.put("a", [b""]), lambda: backing.lock().__enter__()):
        with pytest.raises(ResourceError, match=f"cannot write to {backing.url}"):
            write()


def test_a_folder_in_the_place_of_a_file_reads_as_damage_and_is_written_over(store: Store) -> None:
    write_features(store, 0)
    (store.path / KEY).unlink()
    (store.path / KEY / "inside").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"features/mid\.attn2\.q chunk c\.0\.0\.0\.0 is damaged: it is empty"):
        store.arrays.read_chunk("features/mid.attn2.q", (0, 0, 0, 0))
    write_features(store, 0)
    assert store.arrays.read_chunk("features/mid.attn2.q", (0, 0, 0, 0)).shape[1] == 2


def test_whatever_is_in_the_place_of_a_group_is_removed_with_it(store: Store) -> None:
    store.delete("features")
    (store.path / "features").write_text("a file")
    store.delete("features")
    assert not (store.path / "features").exists()


def test_linked_folders_are_listed_too(store: Store, tmp_path: Path) -> None:
    write_features(store, 0)
    before, size = store.arrays.backing.keys("features"), store.nbytes("features")
    (store.path / "features/mid.attn2.q").rename(tmp_path / "elsewhere")
    (store.path / "features/mid.attn2.q").symlink_to(tmp_path / "elsewhere")
    assert KEY in before
    assert (store.arrays.backing.keys("features"), store.nbytes("features")) == (before, size)
    assert files.size_of(str(tmp_path / "gone")) == 0
