"""The errors nullbooth raises on purpose, grouped by what the reader does next.

    NullboothError
    ├── ConfigError      fix the command line, the config, the prompts or the model    exit 2
    ├── StageError       run (or force) a stage                                        exit 3
    ├── StoreError       look at the store: damaged, locked, foreign or too new        exit 4
    └── ResourceError    find disk, memory or a device                                 exit 5

Anything else that escapes is a bug and keeps its traceback (exit 1).
"""

from typing import ClassVar


class NullboothError(Exception):
    """What is wrong, with values; `hint` is the command or the key that mends it. Both may span lines."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(NullboothError):
    exit_code = 2


class StageError(NullboothError):
    exit_code = 3


class StoreError(NullboothError):
    exit_code = 4


class ResourceError(NullboothError):
    exit_code = 5
