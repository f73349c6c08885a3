"""A store in a local folder: writes that survive a power cut, and one writer at a time."""

import asyncio
import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import psutil
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store import files
from nullbooth_cli.store.backing import Backing, Bytes, UnreadableError
from nullbooth_cli.store.locks import PROBE_SECONDS, holder_text, in_use

TEMPORARY = ".partial"


class LocalBacking(Backing):
    """A folder. Order of a commit: data to a temporary file, fdatasync, rename; fsync of the folders; then the progress cell."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self.url = path, str(path)
        self.zarr = DurableLocalStore(self, read_only=read_only)
        self._folders: set[Path] = set()
        self._guard = threading.Lock()

    def inside(self, name: str, *, read_only: bool = False) -> "LocalBacking":
        """A folder inside this one."""
        return LocalBacking(self.path / name, read_only=read_only)

    def exists(self) -> bool:
        """Whether the folder, or a file of its name, is there."""
        return self._mode() is not None

    def is_foreign(self) -> bool:
        """Whether a file, or a folder that is not empty, is there."""
        mode = self._mode()
        with self.reading():
            return mode is not None and (not stat.S_ISDIR(mode) or any(self.path.iterdir()))

    def begins_with(self, start: bytes) -> bool:
        """Whether a file of the folder's name begins with these bytes."""
        mode = self._mode()
        if mode is None or not stat.S_ISREG(mode):
            return False
        with self.reading(), self.path.open("rb") as file:
            return file.read(len(start)) == start

    def _mode(self) -> int | None:
        # Path.exists() takes errors for absence, in some versions of Python all of them.
        with self.reading():
            return files.mode_of(self.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of the operating system into ResourceError: UnreadableError if they are about one file."""
        try:
            yield
        except OSError as error:
            place = os.fspath(error.filename or self.path)
            kind = UnreadableError if error.errno in files.UNREADABLE and place != self.url else ResourceError
            raise kind(f"cannot read {place}: {error.strerror or error}", files.hint(error)) from error

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """All bytes of a file, `[bytes]`, or None if there is none. A folder in its place has no bytes."""
        path = self.path / key
        with self.reading():
            try:
                return files.read(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except IsADirectoryError:
                return np.empty(0, np.uint8)
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # an error while reading names no file

    def put(self, key: str, parts: list[Bytes]) -> None:
        """Write a temporary file, flush it, and rename it."""
        path = self.path / key
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            descriptor = self._new_file(temporary)
            try:
                for part in parts:
                    view = memoryview(part)
                    while view.nbytes:
                        view = view[os.write(descriptor, view) :]
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.replace(temporary, path)
            except IsADirectoryError:  # damage, which a repair writes over
                shutil.rmtree(path)
                os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # a read-only file system refuses even to remove a missing file
                temporary.unlink(missing_ok=True)
            raise self.failure(error) from error
        with self._guard:
            self._folders |= {path.parent, path.parent.parent}

    def _new_file(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o666)

    def sync(self) -> None:
        """Flush every folder in which a file was renamed since the last call."""
        with self._guard:
            folders, self._folders = self._folders, set()
        try:
            for folder in sorted(folders):
                files.flush(folder)
        except OSError as error:
            with self._guard:
                self._folders |= folders
            raise self.failure(error) from error

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        with self.writing():
            files.remove(self.path / key)

    def keys(self, prefix: str) -> set[str]:
        """The keys of all files below a folder. A folder in the place of a file counts too: reading it shows the damage."""
        with self.reading():
            return {os.path.relpath(path, self.path) for path in files.below(self.path / prefix, folders=True)}

    def nbytes(self, prefix: str) -> int:
        """Bytes of all files below a folder, without those of the file system."""
        with self.reading():
            return sum(map(files.size_of, files.below(self.path / prefix)))

    def free_nbytes(self) -> int | None:
        """Bytes that are free on the disk of the folder, or of the nearest folder above it."""
        with self.reading():
            return shutil.disk_usage(files.nearest(self.path)).free

    def sweep(self) -> None:
        """Remove temporary files."""
        try:
            for leftover in self.path.rglob(f"*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise self.failure(error) from error

    @contextlib.contextmanager
    def lock(self, name: str = "", wait: float = 0) -> Iterator[None]:
        """Hold the lock file `<folder>.lock`, or `<folder>.lock.<name>`; the holder's text is inside."""
        self._check_name()
        path = self._lock_file(name)
        lock = FileLock(path, timeout=wait)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            with self.writing():  # a place that takes no files, such as /proc, looks like a lock that is held
                holder = path.read_text()
            raise in_use(self.url, holder) from error
        except OSError as error:
            raise self.failure(error) from error
        try:
            with contextlib.suppress(OSError):  # on a full disk the lock works too, without the holder's name
                path.write_text(holder_text())
            yield
        finally:
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong before
                path.write_text("")
            lock.release()

    def _locked_folder(self) -> Path:
        """The folder that all names of this place lead to: links are followed, and held-out prompts belong to their store."""
        real = Path(os.path.realpath(self.path))
        return real.parent if real.name == HELDOUT and os.path.exists(real.parent / "zarr.json") else real

    def _check_name(self) -> None:
        """Raise StoreError for a mount point: those who have the same folder elsewhere would look for its lock there."""
        folder = str(self._locked_folder())
        if any(mounted.mountpoint == folder for mounted in psutil.disk_partitions(all=True)):
            self.check_writable()  # of a mount for reading only, that is what the user must know
            raise StoreError(
                f"{folder} is a mount point, so a process that knows the folder by another name would not see its lock",
                "mount the folder around the store instead of the store itself",
            )

    def _lock_file(self, name: str) -> Path:
        # Beside the store: inside, Zarr would find an unknown object.
        return Path(f"{self._locked_folder()}.lock{name and f'.{name}'}")

    def other_locks(self) -> list[str]:
        """The names of all named lock files beside the folder, held or not."""
        folder = self._locked_folder()
        start = f"{folder.name}.lock."
        return [path.name.removeprefix(start) for path in folder.parent.glob(f"{glob.escape(start)}*")]

    def check_writable(self) -> None:
        """Write a temporary file into the folder and beside it."""
        # The locks are beside the store, so the folder around it must be writable as well.
        try:
            for folder in dict.fromkeys((files.nearest(self.path), files.nearest(self._locked_folder().parent))):
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".nullbooth-", suffix=TEMPORARY) as probe:
                    probe.write(b"nullbooth")
        except OSError as error:
            raise self.failure(error) from error

    def check_free(self) -> None:
        """Take each lock that was ever taken, for a moment."""
        # A killed holder leaves its name behind, so only taking the lock shows whether it is free.
        for name in ("", *self.other_locks()):
            if self._lock_file(name).exists():
                with self.lock(name, PROBE_SECONDS):
                    pass

    def failure(self, error: OSError) -> ResourceError:
        """ResourceError: no room left, no permission, or whatever else the system refuses."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            room = "" if error.errno == errno.EDQUOT else f" ({self.free_nbytes():,} bytes free)"
            what = "the quota is used up" if error.errno == errno.EDQUOT else "no room left"
            return ResourceError(f"{what} for {self.url}{room}", "free some space and run this again; finished units stay")
        return ResourceError(f"cannot write to {self.url}: {error}", f"{files.hint(error)}; finished units stay")


class DurableLocalStore(LocalStore):
    """Zarr's own writes (metadata, texts) are as durable as those of chunks, and its errors are ours."""

    def __init__(self, backing: LocalBacking, *, read_only: bool = False) -> None:
        super().__init__(backing.path, read_only=read_only)
        self._backing = backing

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Zarr's, with our errors."""
        with self._backing.reading():
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Whether a file is there."""
        with self._backing.reading():
            mode = await asyncio.to_thread(files.mode_of, self.root / key)
            return mode is not None and stat.S_ISREG(mode)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Zarr's, with our errors."""
        with self._backing.reading():
            async for name in super().list_dir(prefix):
                yield name

    async def delete(self, key: str) -> None:
        """Remove a file, if it is there, or whatever is in its place."""
        await self._remove(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder and all that is in it, if it is there, or whatever is in its place."""
        await self._remove(prefix)

    async def _remove(self, name: str) -> None:
        self._check_writable()
        with self._backing.writing():
            await asyncio.to_thread(files.remove, self.root / name)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if exclusive and await self.exists(key):
            return
        self._check_writable()
        await asyncio.to_thread(self._backing.put, key, [memoryview(value.as_buffer_like())])
