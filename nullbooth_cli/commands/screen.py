"""The two streams as rich sees them: whether something can be drawn over, how wide they are, and colours."""

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def is_live(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can draw over what it shows."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def rich_console(*, stderr: bool) -> "Console":
    """Rich's console for a stream: as wide as the terminal, and without a limit elsewhere."""
    from rich.console import Console

    # Rich would cut the cells of a piped table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 10_000, highlight=False)


def painted(text: str, style: str, *, stderr: bool) -> str:
    """The text in the colour of a verdict (`STYLES`), if the stream is a terminal and NO_COLOR is not set."""
    from rich.text import Text

    console = rich_console(stderr=stderr)
    with console.capture() as drawn:
        console.print(Text(text, STYLES[style]), end="")
    return drawn.get()
