"""Files under Zarr: durable writes, data chunks that must be there, and what a full disk is called."""

import errno
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from nullbooth_cli.errors import ResourceError

_DATA_CHUNK = re.compile(r"^(features|moments|projectors)/.*(^|/)c[./]\d")


class DurableLocalStore(LocalStore):
    """LocalStore that can wait until its writes are on the disk, and that refuses to read data chunks which are not there."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._unsynced: set[Path] = set()
        self._guard = threading.Lock()

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        await super()._set(key, value, exclusive=exclusive)
        with self._guard:
            self._unsynced.add(self.root / key)

    async def delete_dir(self, prefix: str) -> None:
        await super().delete_dir(prefix)
        with self._guard:
            self._unsynced = {path for path in self._unsynced if not path.is_relative_to(self.root / prefix)}

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: Any = None) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if _DATA_CHUNK.match(key) and (value is None or len(value) == 0):
            raise FileNotFoundError(errno.ENOENT, "chunk is missing or empty", str(self.root / key))
        return value

    def sync(self) -> None:
        """Return when every file written so far, and its folder's entry, is on the disk. Cost: one flush per file and folder."""
        with self._guard:
            paths, self._unsynced = self._unsynced, set()
        folders = {folder for path in paths for folder in (path.parent, path.parent.parent)}
        for path in [*paths, *folders]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def resource_error(error: OSError, path: Path) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        return ResourceError(
            f"no room left for {path} ({free:,} bytes free)", "free some space and run the same command: finished units are kept"
        )
    return ResourceError(f"cannot write to {path}: {error}", "check the path and its permissions; finished units are kept")
