"""What a training run or an edit records of the model that it started from.

It is in train.json, in base.json beside what was trained, and in edit.json:

    "after": {"place": "/runs/dog", "relative": "../../dog", "digest": "0f3a...", "prompts": ["a sks dog"]}

The folders may move: the place is first looked for by its way from the folder of the file, then where it was.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nullbooth_cli.errors import ConfigError

Made = Literal["trained", "edited"]
_WITHOUT: dict[Made, str] = {"trained": "without it, it is another model", "edited": "only that tells what was edited before"}


@dataclass(frozen=True, kw_only=True)
class After:
    """`place` is the absolute path of the earlier model, `relative` the way to it from the folder that the record is in.

    A place that is no path, such as a hub id, is as the user named it, and has no way to it. `digest` is that of the files that
    were put onto a base or a pipeline, of an edit that of its weights, None for another pipeline. `prompts` are those of what was
    taught until then.
    """

    place: str
    relative: str | None
    digest: str | None
    prompts: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: str, folder: Path, *, digest: str | None, prompts: tuple[str, ...] = ()) -> "After":
        """The record of a place, for a file in a folder."""
        found = os.path.abspath(Path(place).expanduser())
        if not os.path.exists(found):
            return cls(place=place, relative=None, digest=digest, prompts=prompts)
        return cls(place=found, relative=os.path.relpath(found, os.path.abspath(folder)), digest=digest, prompts=prompts)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "After | None":
        """The record in a train.json, base.json or edit.json; None without one."""
        found = document.get("after")
        return None if found is None else cls(**{**found, "prompts": tuple(found["prompts"])})

    def document(self) -> dict[str, Any]:
        """The record as JSON."""
        return {**asdict(self), "prompts": list(self.prompts)}

    def find(self, folder: Path, made: Made = "trained") -> Path:
        """The place as it is now, for a record in a folder that was `made` so. Raises ConfigError if it is gone."""
        if self.relative is None:
            return Path(self.place)
        for path in (Path(os.path.normpath(folder / self.relative)), Path(self.place)):
            if path.exists():
                return path
        raise ConfigError(
            f"{folder} was {made} after {self.place}, which is gone: {_WITHOUT[made]}",
            "put it back, or keep both in one folder when you move them",
        )
