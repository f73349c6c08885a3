"""The log of a training run: one line of JSON for each optimizer step, in the order of the steps.

    <output>/train.jsonl    {"step": 1, "loss": 0.1234, "learning_rate": 0.001, "seconds": 0.25}

A line is written when its step is done. A run that resumes drops the lines of steps after its checkpoint, because it does those
steps again: but for `seconds`, its log is that of a run that was not interrupted.
"""

import json
import os
from pathlib import Path
from types import TracebackType

from nullbooth_cli.training import durable

NAME = "train.jsonl"


class StepLog:
    """The log of the output of a run that has done `step` steps; enter it to write. Raises ResourceError if it cannot be written.

    `is_written` is false in a process that is not the main one. Cost: about a hundred bytes a step; one read when a run resumes.
    """

    def __init__(self, output: str, step: int, *, is_written: bool = True) -> None:
        self._path, self._step, self._is_written = Path(output) / NAME, step, is_written

    def __enter__(self) -> "StepLog":
        if self._is_written:
            with durable.writing(self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                before = self._path.read_bytes() if self._path.exists() else b""
                kept = _lines_until(before, self._step)
                if kept != before:
                    with durable.replacing(self._path) as partial:
                        partial.write_bytes(kept)
                self._file = self._path.open("ab", buffering=0)  # a killed process loses no line that it wrote
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_written:
            self._file.close()

    def add(self, *, step: int, loss: float, learning_rate: float, seconds: float) -> None:
        """Write the line of a step."""
        if self._is_written:
            line = {"step": step, "loss": loss, "learning_rate": learning_rate, "seconds": round(seconds, 4)}
            with durable.writing(self._path.parent):
                self._file.write(f"{json.dumps(line)}\n".encode())

    def flush(self) -> None:
        """Wait until all lines are on disk: a checkpoint comes after those of its steps."""
        if self._is_written:
            with durable.writing(self._path.parent):
                os.fsync(self._file.fileno())


def _lines_until(log: bytes, step: int) -> bytes:
    """The lines of a log up to a step; what a killed process wrote of a line is left out."""
    kept = []
    for line in log.splitlines(keepends=True):
        try:
            written = json.loads(line)["step"] if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            written = None
        if written is None or written > step:
            break
        kept.append(line)
    return b"".join(kept)
