"""Files and folders that are whole and on disk before they get their names, and records that carry their own checksum."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.store.files import flush, nearest, remove

TORCH_WRITER = "inline_container"  # torch.save raises RuntimeError when a file cannot be written; only its text tells
CHECKSUM = "checksum"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what Python, safetensors and torch raise when a file cannot be written into a ResourceError about `folder`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):
            raise
        reason = "a file was cut short" if isinstance(error, RuntimeError) else str(error)
        free = shutil.disk_usage(nearest(folder)).free
        raise ResourceError(
            f"cannot write to {folder}: {reason} ({free:,} bytes are free without it)",
            "free some space, or check the permissions, and run this again: it resumes from the last checkpoint",
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, for a file or a folder, that becomes `path` at the end, once all of it is on disk.

    What was at `path` stays until then. After an error nothing of the new one is left. Raises ResourceError if it cannot be
    written.
    """
    partial = partial_of(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        try:
            yield partial
            _sync(partial)
            before = path.with_name(f"{path.name}.before")
            if path.is_dir():  # a rename replaces files only
                remove(before)
                path.rename(before)
            partial.rename(path)
            flush(path.parent)
            remove(before)
        finally:
            with contextlib.suppress(OSError):  # it must not hide what went wrong before
                remove(partial)


def partial_of(path: Path) -> Path:
    """The temporary path of `replacing`."""
    return path.with_name(f"{path.name}.partial")


def _sync(path: Path) -> None:
    """Wait until a file, or a folder and all in it, is on disk."""
    for inner in [*path.rglob("*"), path]:
        flush(inner)


def digest(path: Path) -> str:
    """SHA-256 of a file. Cost: one read, about a second per GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_text(document: Mapping[str, Any]) -> str:
    """A JSON document with a checksum over the rest of it."""
    return json.dumps({CHECKSUM: fingerprint(document), **document}, indent=2) + "\n"


def read_record(path: Path, hint: str) -> dict[str, Any]:
    """The document of `record_text`. Raises StoreError, with this hint, if the file is missing, unreadable or changed."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise StoreError(f"cannot read {path}: {reason}", hint) from error
    if not isinstance(document, dict) or document.pop(CHECKSUM, None) != fingerprint(document):
        raise StoreError(f"{path} is damaged: its checksum is wrong", hint)
    return document
