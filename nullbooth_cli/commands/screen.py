"""The two output streams: whether a terminal can redraw them, their width, and what may reach them."""

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# What steers a terminal or hides what is written: C0 and C1 controls but tab and newline, line and paragraph separators, marks
# and overrides of the direction of writing, and halves of surrogate pairs, which no encoding takes.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """A text as it may be shown: a character that steers a terminal, such as ESC, becomes its JSON escape, `\\u001b`."""
    return _STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text)


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
