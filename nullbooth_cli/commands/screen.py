"""The two output streams: whether a terminal can redraw them, their width, and what may reach them."""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from nullbooth_cli.formatting import visible

if TYPE_CHECKING:
    from rich.console import Console


def is_live(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can draw over what it shows."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def rich_console(*, stderr: bool) -> "Console":
    """Rich's console for a stream: as wide as the terminal, and without a limit elsewhere. Everything in it is `visible`."""
    from rich.console import Console
    from rich.segment import Segment

    class VisibleConsole(Console):
        def render(self, *args: Any, **extra: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **extra):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    # Rich would cut the cells of a piped table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return VisibleConsole(stderr=stderr, width=None if stream.isatty() else 10_000, highlight=False)
