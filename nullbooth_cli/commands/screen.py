"""The two output streams: whether a terminal can redraw them, and their width."""

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def is_live(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can draw over what it shows."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def rich_console(*, stderr: bool) -> "Console":
    """Rich's console for a stream: as wide as the terminal, and without a limit elsewhere."""
    from rich.console import Console

    # Rich would cut the cells of a piped table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 10_000, highlight=False)
