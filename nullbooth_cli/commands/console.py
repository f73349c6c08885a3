"""The only module that prints: answers to stdout, everything else to stderr.

stdout carries one table or exactly one JSON document. stderr carries progress, notes, errors and `next:`. On a terminal
progress is a bar, and a table leaves out columns that do not fit; elsewhere progress is a plain line every few seconds, and
tables are as wide as they need to be. NO_COLOR is respected, and a dumb terminal gets lines too.

Whatever comes from a file, a store or an argument is shown as text: all that is printed goes through `_write` or rich's console,
which make it `visible`. Rich's markup is never read.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

from nullbooth_cli.commands.draw_progress import ProgressBars, ProgressLines
from nullbooth_cli.commands.hints import hint_of
from nullbooth_cli.commands.screen import is_live, rich_console
from nullbooth_cli.commands.tables import folded
from nullbooth_cli.errors import NullboothError
from nullbooth_cli.formatting import visible
from nullbooth_cli.progress import Event, Note, result_of

if TYPE_CHECKING:
    from rich.console import RenderableType

Answer = TypeVar("Answer")
Result = TypeVar("Result")
STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


class Terminal:
    """The output of one command.

    `quiet` leaves only errors on stderr; `as_json` also turns errors into JSON. A `silent` terminal prints no answer either: it
    belongs to a process of a launch that is not the first.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.as_json, self.quiet, self.silent = as_json, quiet or silent, silent

    def answer(self, document: Answer, draw: "Callable[[Answer], RenderableType | list[RenderableType]]") -> None:
        """Print the document (dataclass or dictionary) as JSON, or as `draw(document)` gives it: text, tables, or both."""
        if self.silent:
            return
        if self.as_json:
            from nullbooth_cli.report.json_document import to_json

            _write(sys.stdout, _json(to_json(document)) + "\n")
            return
        drawn = draw(document)
        console = rich_console(stderr=False)
        for part in drawn if isinstance(drawn, list) else [drawn]:
            if isinstance(part, str) and not sys.stdout.isatty():
                _write(sys.stdout, part + "\n")
            else:
                console.print(part, markup=False)

    def watch(
        self,
        documents: Iterable[Answer],
        draw: "Callable[[Answer], list[RenderableType]]",
        line: Callable[[Answer], str],
        change_key: Callable[[Answer], object],
    ) -> None:
        """Show documents as they arrive: on a terminal in place; elsewhere a line (or JSON) whenever `change_key` has changed."""
        if not self.as_json and is_live(sys.stdout):
            from rich.console import Group
            from rich.live import Live
            from rich.text import Text

            with Live(console=rich_console(stderr=False), auto_refresh=False) as live:
                for document in documents:
                    parts = [Text(part) if isinstance(part, str) else part for part in draw(document)]
                    live.update(Group(*parts), refresh=True)
            return
        from nullbooth_cli.report.json_document import to_json

        before: object = None
        for document in documents:
            if (now := change_key(document)) != before:
                _write(sys.stdout, f"{_json(to_json(document)) if self.as_json else line(document)}\n")
                sys.stdout.flush()
            before = now

    @property
    def draws_on_screen(self) -> bool:
        """Whether the answer is drawn on a terminal."""
        return not self.as_json and sys.stdout.isatty()

    def text(self, text: str) -> None:
        """Print an answer that is neither table nor JSON (CSV)."""
        _write(sys.stdout, text)

    def note(self, text: str) -> None:
        """Tell the user something that is not an error, unless `quiet`."""
        if not self.quiet:
            _write(sys.stderr, f"{text}\n")

    def warn(self, warnings: Iterable[str]) -> None:
        """Print the warnings that belong to an answer; a JSON document contains them already."""
        for warning in warnings if not self.as_json else ():
            self.note(f"warning: {warning}")

    def next(self, *commands: str) -> None:
        """Suggest what to type next: one of the commands."""
        for start, command in zip(("next:", *["or:  "] * len(commands)), commands, strict=False) if not self.as_json else ():
            self.note(f"{start} {command}")

    def error(self, error: NullboothError, options: Sequence[str] = ()) -> None:
        """Print an error and its hint, in the words of the command line; `options` go into a command that the hint names."""
        if self.as_json:
            document = {"error": error.message, "hint": hint_of(error, options), "exit_code": error.exit_code}
            _write(sys.stderr, _json(document) + "\n")
            return
        hint = hint_of(error, options).replace("\n", "\n      ")
        sys.stderr.write(_painted("error:", "error", stderr=True))
        _write(sys.stderr, f" {error.message}\n\nhint: {hint}\n")

    def verdict(self, verdict: str, name: str, text: str, *, hint: str | None, width: int) -> None:
        """Print a verdict (ok, warning, error) on one thing, and its hint below; names take `width` columns.

        On a terminal long lines fold into their column.
        """
        start = f"{verdict:<9}{name:<{width}}  "
        room = rich_console(stderr=False).width - len(start) if sys.stdout.isatty() else None
        lines = [*folded(text, room), *folded(f"hint: {hint}", room, indent=6)] if hint else folded(text, room)
        below = "\n" + " " * len(start)
        sys.stdout.write(_painted(verdict, verdict, stderr=False))
        _write(sys.stdout, start[len(verdict) :] + below.join(lines) + "\n")
        sys.stdout.flush()

    def follow(self, events: Iterable[Event]) -> None:
        """Draw the events of running stages until they end."""
        with self._display() as show:
            for event in events:
                show(event)

    def result_of(self, events: Generator[Event, None, Result]) -> Result:
        """The same for work that ends in a result, which is returned."""
        with self._display() as show:
            return result_of(events, show)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[Event], None]]:
        """What draws an event: as a bar on a terminal, else as a line."""
        if self.quiet or not is_live(sys.stderr):
            lines = ProgressLines()

            def write(event: Event) -> None:
                if (line := lines.line(event)) is not None:
                    self.note(line)

            yield write
            return
        bars = ProgressBars(rich_console(stderr=True))

        def draw(event: Event) -> None:
            if isinstance(event, Note):
                bars.display.console.print(event.text, markup=False, highlight=False)
            else:
                bars.update(event)

        with bars.display:
            yield draw


def _write(stream: TextIO, text: str) -> None:
    stream.write(visible(text))


def _json(document: object) -> str:
    """A JSON document; `visible` then writes what steers a terminal as JSON's own escapes, so it stays the same document."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _painted(text: str, style: str, *, stderr: bool) -> str:
    """The text in the colour of a verdict (`STYLES`), if the stream is a terminal and NO_COLOR is not set."""
    from rich.text import Text

    console = rich_console(stderr=stderr)
    with console.capture() as drawn:
        console.print(Text(text, STYLES[style]), end="")
    return drawn.get()
