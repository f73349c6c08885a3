"""The errors that nullbooth raises on purpose, grouped by what the reader does next.

    NullboothError
    ├── ConfigError      fix a setting, an argument, the prompts or the images         exit 2
    ├── StageError       run (or force) a stage                                        exit 3
    ├── StoreError       look at the store: damaged, locked, foreign or too new        exit 4
    ├── ResourceError    find disk, memory or a device                                 exit 5
    ├── ModelError       use another model: this one cannot be recorded                exit 6
    └── DataError        check a value: it came out not finite, or outside its range   exit 7

Anything else that escapes is a bug and keeps its traceback (exit 1).
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Rerun:
    """A hint that is a stage to run: as text a Python call; the command line prints it as a command.

    `settings` are `key=value` changes to the config; `otherwise` follows the call and names an alternative.
    """

    stage: str
    force: bool = False
    repair: bool = False
    store: str | None = None
    settings: tuple[str, ...] = ()
    otherwise: str = ""

    def __str__(self) -> str:
        flags = "".join(f", {name}=True" for name in ("force", "repair") if getattr(self, name))
        call = f'nb.run(config, stages=["{self.stage}"]{flags})'
        changed = f" with {', '.join(self.settings)}" if self.settings else ""
        return f"{call}{changed}{self.otherwise}"


class NullboothError(Exception):
    """`message` describes the problem, with values; `hint` is an order, in terms of Python. Both may have several lines.

    `rerun` is the stage that the hint asks for, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | Rerun) -> None:
        super().__init__(message)
        self.message = message
        self.hint = str(hint)
        self.rerun = hint if isinstance(hint, Rerun) else None


class ConfigError(NullboothError):
    """A setting, an argument, the prompts or the images are wrong."""

    exit_code = 2


class StageError(NullboothError):
    """A stage is missing, incomplete or stale."""

    exit_code = 3


class StoreError(NullboothError):
    """The store is damaged, locked, foreign or of a newer format."""

    exit_code = 4


class ResourceError(NullboothError):
    """Disk, memory, a device or the network is missing."""

    exit_code = 5


class ModelError(NullboothError):
    """The model or its pipeline does something that cannot be recorded or constrained."""

    exit_code = 6


class DataError(NullboothError):
    """A value came out wrong: not finite, negative where it cannot be, or too large for its type."""

    exit_code = 7
