"""The files of a checkpoint: how one is found, described and checked, and how many of them stay.

    <output>/checkpoint-000200/          what trains (parameters.py), accelerate's state, and manifest.json: the run's
                                        record, and the digest of each file
                               trained/  what the run trained, without the base (write_trained.py)

Whatever else is in the output is left alone, also if its name begins in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import CHECKPOINT
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.formatting import listed
from nullbooth_cli.store.files import remove
from nullbooth_cli.training import durable
from nullbooth_cli.training.record import RunRecord

MANIFEST = "manifest.json"
VERSION = 2  # 1 kept whole models
SMALL_BYTES = 100 * 10**6  # of checkpoints of at most this size, all stay
LAST = 5  # of larger ones


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of `step` steps, as its manifest describes it. `files`: size and SHA-256 of each file, by its path in it."""

    folder: Path
    step: int
    record: RunRecord
    files: Mapping[str, Mapping[str, Any]]

    def require_whole(self) -> None:
        """Raise StoreError, naming the file, unless every file is as it was written. Cost: one read, about a second per GB."""
        hint = _hint(self.folder, self.step)
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


def find(output: str, step: int | None = None) -> Checkpoint | None:
    """The checkpoint of `step` steps, else the newest of an output; None if there is none at all. Cost: one small file.

    Raises ConfigError, which lists those that exist, if none has these steps. Raises StoreError, naming the file, for one that is
    damaged or of another version.
    """
    folders = _folders(Path(output))
    if step is not None and step not in folders:
        there = f"{output} has checkpoints of {listed(sorted(folders), 20)} steps" if folders else f"{output} has no checkpoint"
        raise ConfigError(f"{there}, and none of {step}", "name one that is there" if folders else "train first")
    if not folders:
        return None
    step = max(folders) if step is None else step
    folder = folders[step]
    hint = _hint(folder, step)
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


def steps(output: str) -> list[int]:
    """The steps of the checkpoints of an output, whole or not, in order."""
    return sorted(_folders(Path(output)))


def _folders(output: Path) -> dict[int, Path]:
    """Everything that has the name of a checkpoint, by its step."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in (output.iterdir() if output.is_dir() else ()))
    return {int(match[1]): path for match, path in named if match}


def _hint(folder: Path, step: int) -> str:
    """What to do about a damaged checkpoint: the newest is resumed from, any other can only be the result."""
    others = steps(str(folder.parent))
    if others and step < others[-1]:
        there = listed([other for other in others if other != step], 20)
        return f"move {folder} away, and name another checkpoint: there are those of {there} steps"
    earlier = [other for other in others if other < step]
    what = f"resume from {folder_of(str(folder.parent), earlier[-1]).name}" if earlier else "train from the first step"
    return f"move {folder} away, and run this again to {what}; or set another output"


def folder_of(output: str, step: int) -> Path:
    """The folder of a checkpoint."""
    return Path(output) / f"checkpoint-{step:06d}"


def describe(folder: Path, step: int, record: RunRecord) -> int:
    """Write the manifest of a folder that has all other files; returns their bytes. Cost: one read of them."""
    files: dict[str, dict[str, Any]] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": durable.digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    document = {"version": VERSION, "step": step, "run": record.document(), "files": files}
    (folder / MANIFEST).write_text(durable.record_text(document))
    return sum(file["bytes"] for file in files.values())


def limit_of(total_limit: int | None, num_bytes: int) -> int | None:
    """How many checkpoints of this size stay; None for all. `total_limit` is the recipe's, None if it leaves the choice."""
    return total_limit or (None if num_bytes <= SMALL_BYTES else LAST)


def remove_old(output: str, step: int, limit: int | None) -> None:
    """Of the checkpoints of up to `step` steps, remove all but the newest `limit`; with None, none.

    Each first loses its name, so that a killed removal leaves nothing that looks like a checkpoint.
    """
    if limit is None:
        return
    until = {found: folder for found, folder in _folders(Path(output)).items() if found <= step}
    for old in sorted(until)[:-limit]:
        nameless = durable.partial_of(until[old])
        remove(nameless)
        until[old].rename(nameless)
        remove(nameless)
