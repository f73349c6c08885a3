"""A store in a local folder: writes that survive a power cut, and one writer at a time."""

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.store.backing import Backing, Bytes
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
        return self.path.exists()

    def is_foreign(self) -> bool:
        """Whether a file, or a folder that is not empty, is there."""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """All bytes of a file, `[bytes]`, or None if there is none."""
        try:
            return np.fromfile(self.path / key, np.uint8)
        except (FileNotFoundError, NotADirectoryError):
            return None

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
        for folder in sorted(folders):
            if folder.exists():
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        (self.path / key).unlink(missing_ok=True)

    def nbytes(self, prefix: str) -> int:
        """Bytes of all files below a folder, without those of the file system."""
        files = (os.path.join(root, file) for root, _, names in os.walk(self.path / prefix) for file in names)
        return sum(map(_size_of, files))

    def free_nbytes(self) -> int | None:
        """Bytes that are free on the disk of the folder, or of the nearest folder above it."""
        return shutil.disk_usage(_existing(self.path)).free

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
        path = self._lock_file(name)
        lock = FileLock(path, timeout=wait)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise in_use(self.url, path.read_text()) from error
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

    def _lock_file(self, name: str) -> Path:
        # Beside the store: inside, Zarr would find an unknown object.
        return Path(f"{self.path}.lock{name and f'.{name}'}")

    def other_locks(self) -> list[str]:
        """The names of all named lock files beside the folder, held or not."""
        start = f"{self.path.name}.lock."
        return [path.name.removeprefix(start) for path in self.path.absolute().parent.glob(f"{self.path.name}.lock.*")]

    def check_writable(self) -> None:
        """Write a temporary file into the folder and beside it."""
        # The locks are beside the store, so the folder around it must be writable as well.
        try:
            for folder in dict.fromkeys((_existing(self.path), _existing(self.path.absolute().parent))):
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

    def failure(self, error: OSError) -> ResourceError | StoreError:
        """ResourceError: no room left, or no permission."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ResourceError(
                f"no room left for {self.url} ({self.free_nbytes():,} bytes free)",
                "free some space and run this again; finished units are kept",
            )
        return ResourceError(
            f"cannot write to {self.url}: {error}", "check the path and its permissions; finished units are kept"
        )


def _existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0  # a temporary file of a process at work, renamed since it was listed


class DurableLocalStore(LocalStore):
    """Zarr's own writes (metadata, texts) are as durable as those of chunks."""

    def __init__(self, backing: LocalBacking, *, read_only: bool = False) -> None:
        super().__init__(backing.path, read_only=read_only)
        self._backing = backing

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if exclusive and await self.exists(key):
            return
        self._check_writable()
        await asyncio.to_thread(self._backing.put, key, [memoryview(value.as_buffer_like())])
