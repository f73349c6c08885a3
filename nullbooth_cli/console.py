"""The only module that prints: answers to stdout, everything else to stderr.

stdout carries one table or exactly one JSON document. stderr carries progress, notes, errors and `next:`. On a terminal
progress is a bar; elsewhere it is a plain line per unit, and tables are as wide as they need to be.
"""

import json
import sys
import textwrap
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.events import Event, Progress

if TYPE_CHECKING:
    from rich.console import Console


COLOURS = {"ok": 32, "warning": 33, "error": 31}


class Terminal:
    """Where one command's words go.

    `quiet` keeps stderr to errors, `as_json` turns errors into JSON as well. A `silent` one answers nothing either: it belongs to
    one of the other processes of a launch.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.as_json, self.quiet, self.silent = as_json, quiet or silent, silent

    def answer(self, document: dict[str, Any], draw: Any) -> None:
        """Print the document as JSON, or let `draw(document)` give the lines or the table for it."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
            return
        drawn = draw(document)
        console = _console(stderr=False)
        for part in drawn if isinstance(drawn, list) else [drawn]:
            if isinstance(part, str):
                sys.stdout.write(part + "\n")
            else:
                console.print(part)

    def text(self, text: str) -> None:
        """Print an answer that is neither table nor JSON (CSV)."""
        sys.stdout.write(text)

    def note(self, text: str) -> None:
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def warn(self, warnings: Iterable[str]) -> None:
        """What an answer should be read with; a JSON document holds it already."""
        for warning in warnings if not self.as_json else ():
            self.note(f"warning: {warning}")

    def next(self, command: str) -> None:
        """What the user would do next."""
        if not self.as_json:
            self.note(f"next: {command}")

    def error(self, error: NullboothError) -> None:
        if self.as_json:
            document = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
            return
        hint = error.hint.replace("\n", "\n      ")
        sys.stderr.write(f"{_painted('error:', 'error', stderr=True)} {error.message}\n\nhint: {hint}\n")

    def verdict(self, verdict: str, name: str, text: str, hint: str | None, *, width: int) -> None:
        """Answer with what was found about one thing: one line with names as wide as `width`, and its hint below.

        On a terminal long lines fold into their column.
        """
        start = f"{verdict:<9}{name:<{width}}  "
        room = _console(stderr=False).width - len(start) if sys.stdout.isatty() else None
        lines = [*_folded(text, room), *_folded(f"hint: {hint}", room, indent=6)] if hint else _folded(text, room)
        below = "\n" + " " * len(start)
        painted = _painted(verdict, verdict, stderr=False)
        sys.stdout.write(painted + start[len(verdict) :] + below.join(lines) + "\n")
        sys.stdout.flush()

    def follow(self, events: Iterable[Event]) -> None:
        """Draw the events of running stages until they end."""
        if self.quiet:
            for _ in events:
                pass
        elif sys.stderr.isatty():
            self._follow_with_bar(events)
        else:
            started: dict[str, tuple[float, int]] = {}
            for event in events:
                if isinstance(event, Progress):
                    since, before = started.setdefault(event.stage, (time.monotonic(), event.done - 1))
                    seconds = time.monotonic() - since
                    self.note(
                        f"{event.stage} {event.done}/{event.total} {event.what} ({seconds:.1f} s, {event.done - before} this run)"
                    )
                else:
                    self.note(event.text)

    def _follow_with_bar(self, events: Iterable[Event]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.fields[stage]:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", markup=False),
        )
        with Bar(*columns, console=_console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}
            for event in events:
                if not isinstance(event, Progress):
                    bar.console.print(event.text, markup=False, highlight=False)
                else:
                    if event.stage not in tasks:
                        tasks[event.stage] = bar.add_task("", total=event.total, stage=event.stage, what="")
                    # A task that is added as finished would never stop its clock.
                    bar.update(tasks[event.stage], completed=event.done, what=event.what)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    # Rich would cut the cells of a piped table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 10_000, highlight=False)


def _painted(text: str, verdict: str, *, stderr: bool) -> str:
    """The text in the colour of a verdict, on a terminal whose user has not set NO_COLOR."""
    console = _console(stderr=stderr)
    return f"\x1b[{COLOURS[verdict]}m{text}\x1b[0m" if console.color_system and not console.no_color else text


def _folded(text: str, room: int | None, indent: int = 0) -> list[str]:
    """The lines of a text, each in so many columns (None: as they are), all but the first indented."""
    first, *others = text.split("\n")
    lines = [first, *(" " * indent + line for line in others)]
    if room is None:
        return lines
    wrap = textwrap.TextWrapper(max(room, 20), break_long_words=False, break_on_hyphens=False)
    wrap.subsequent_indent = " " * indent
    return [folded for line in lines for folded in wrap.wrap(line)]


def table(columns: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> Any:
    """A plain table; the columns with index in `right` are aligned right. Cells are never cut: on a terminal they fold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index in right else "left", no_wrap=index in right, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def shortened(names: list[str]) -> tuple[list[str], str]:
    """On a terminal, dotted names without the ending that all of them share, and that ending; elsewhere as they are."""
    if not sys.stdout.isatty():
        return names, ""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[-1 - shared] for p in parts}) == 1:
        shared += 1
    return [".".join(p[: len(p) - shared]) for p in parts], ".".join(["", *parts[0][len(parts[0]) - shared :]])


def counted(count: int, word: str) -> str:
    """A number of things: 1 layer, 2 layers."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def size(num_bytes: int) -> str:
    """Bytes for people: 1.2 MB."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB"))


def operations(count: int) -> str:
    """Floating point operations for people: 1.2 PFLOP."""
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(number: int, units: tuple[str, ...]) -> str:
    value = float(number)
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"


def duration(seconds: float) -> str:
    """Seconds for people: 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
