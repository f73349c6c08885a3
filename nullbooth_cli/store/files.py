"""Files and folders as the system gives them, without taking an error for absence; and what its errors ask for."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# About one file. Every other error is about the folder, the disk or the process.
UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM)
_HINTS = {
    errno.EIO: "check the disk, or the connection to it",
    errno.ESTALE: "mount the file system again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.EROFS: "mount the file system for writing, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a place inside a folder",
}


def hint(error: OSError) -> str:
    """What to do about an error of the system."""
    return _HINTS.get(error.errno or 0, "check the path and its permissions")


def mode_of(path: Path) -> int | None:
    """The mode of a file or folder; None if nothing is there."""
    # Path.exists() takes some errors for absence, in newer versions of Python all of them.
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def nearest(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if mode_of(parent) is not None)


def read(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, `[bytes]`."""
    # np.fromfile takes a read that fails for the end of the file.
    with path.open("rb", buffering=0) as file:
        data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        done = 0
        while count := file.readinto(data[done:].data):
            done += count
    return data[:done]


def below(folder: Path, *, folders: bool = False) -> Iterator[str]:
    """Every file below a folder, and every folder if asked for; nothing if it is not there."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # removed since it was listed
            raise error

    for root, inner, files in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (os.path.join(root, name) for name in ((*files, *inner) if folders else files))


def size_of(path: str) -> int:
    """Bytes of a file; 0 if it is no longer there, as a temporary file of a process at work."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, durable, if it is still there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it names) or a folder and all that is in it, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        pass
    except (IsADirectoryError, PermissionError):  # the second is what macOS says of a folder
        if path.is_symlink() or not path.is_dir():
            raise
        shutil.rmtree(path)
