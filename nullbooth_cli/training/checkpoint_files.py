"""The files of a checkpoint: how the newest one is found, described and checked.

    <output>/checkpoint-000200/          accelerate's state; manifest.json: the run's record, and the digest of each file

Whatever else is in the output is left alone, also if its name begins in the same way.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.files import remove
from nullbooth_cli.training import durable
from nullbooth_cli.training.record import RunRecord

NAME = re.compile(r"checkpoint-(\d{6,})")
MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of `step` steps, as its manifest describes it. `files`: size and SHA-256 of each file, by its path in it."""

    folder: Path
    step: int
    record: RunRecord
    files: Mapping[str, Mapping[str, Any]]

    def require_whole(self) -> None:
        """Raise StoreError, naming the file, unless every file is as it was written. Cost: one read, about a second per GB."""
        hint = _hint(self.folder)
        for name, written in self.files.items():
            path = self.folder / name
            try:
                found = {"bytes": path.stat().st_size, "sha256": durable.digest(path)}
            except OSError as error:
                raise StoreError(f"cannot read {path}: {error.strerror}", hint) from error
            if found["bytes"] != written["bytes"]:
                raise StoreError(f"{path} is damaged: it has {found['bytes']:,} of {written['bytes']:,} bytes", hint)
            if found != written:
                raise StoreError(f"{path} is damaged: its digest is wrong", hint)


def find(output: str) -> Checkpoint | None:
    """The newest checkpoint of an output; None if there is none. Cost: one small file.

    Raises StoreError, naming the file, for one that is damaged or of another version.
    """
    folders = _folders(Path(output))
    if not folders:
        return None
    step, folder = max(folders.items())
    hint = _hint(folder)
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder", hint)
    if not (folder / MANIFEST).exists():
        raise StoreError(f"{folder / MANIFEST} is missing: files were lost, or an earlier nullbooth made it", hint)
    document = durable.read_record(folder / MANIFEST, hint)
    if document.get("version") != VERSION:
        raise StoreError(f"{folder} was made by another version of nullbooth", hint)
    if document["step"] != step:
        raise StoreError(f"{folder} has {document['step']} steps: it was renamed", hint)
    return Checkpoint(folder=folder, step=step, record=RunRecord.from_document(document["run"]), files=document["files"])


def _folders(output: Path) -> dict[int, Path]:
    """Everything that has the name of a checkpoint, by its step."""
    named = ((NAME.fullmatch(path.name), path) for path in (output.iterdir() if output.is_dir() else ()))
    return {int(match[1]): path for match, path in named if match}


def _hint(folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    earlier = [path for path in _folders(folder.parent).values() if path.name < folder.name]
    what = f"resume from {max(earlier).name}" if earlier else "train from the first step"
    return f"move {folder} away, and run this again to {what}; or set another output"


def folder_of(output: str, step: int) -> Path:
    """The folder of a checkpoint."""
    return Path(output) / f"checkpoint-{step:06d}"


def describe(folder: Path, step: int, record: RunRecord) -> None:
    """Write the manifest of a folder that has all other files. Cost: one read of them."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": durable.digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    document = {"version": VERSION, "step": step, "run": record.document(), "files": files}
    (folder / MANIFEST).write_text(durable.record_text(document))


def remove_before(output: str, step: int) -> None:
    """Remove the checkpoints of fewer steps."""
    for earlier, folder in _folders(Path(output)).items():
        if earlier < step:
            remove(folder)
