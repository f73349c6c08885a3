"""What a training run records of the model that it started from, in train.json and beside what it trained in base.json.

    "after": {"place": "/runs/dog", "relative": "../../dog", "digest": "0f3a...", "prompts": ["a sks dog"]}

Both files may move: the place is first looked for by its way from the folder of the file, then where it was.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class After:
    """`place` is the absolute path of the earlier model, `relative` the way to it from the folder that the record is in.

    `digest` is that of the files that were put onto a base or a pipeline, None for a pipeline alone. `prompts` are those of what
    was taught until then.
    """

    place: str
    relative: str
    digest: str | None
    prompts: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: str, folder: Path, *, digest: str | None, prompts: tuple[str, ...]) -> "After":
        """The record of a place, for a file in a folder."""
        found = os.path.abspath(Path(place).expanduser())
        return cls(place=found, relative=os.path.relpath(found, os.path.abspath(folder)), digest=digest, prompts=prompts)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "After | None":
        """The record in a train.json or base.json; None without one."""
        found = document.get("after")
        return None if found is None else cls(**{**found, "prompts": tuple(found["prompts"])})

    def document(self) -> dict[str, Any]:
        """The record as JSON."""
        return {**asdict(self), "prompts": list(self.prompts)}

    def find(self, folder: Path) -> Path:
        """The place as it is now, for a record in a folder. Raises ConfigError if it is gone."""
        for path in (Path(os.path.normpath(folder / self.relative)), Path(self.place)):
            if path.exists():
                return path
        raise ConfigError(
            f"{folder} was trained after {self.place}, which is gone: without it, it is another model",
            "put it back, or keep both in one folder when you move them",
        )
