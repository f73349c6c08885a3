"""The only module that prints: answers to stdout, everything else to stderr.

stdout carries one table or exactly one JSON document. stderr carries progress, notes, errors and `next:`. On a terminal
progress is a bar, and a table leaves columns out that do not fit; elsewhere progress is plain lines, one a second at most, and
tables are as wide as they need to be. NO_COLOR is honoured, and a dumb terminal gets lines too.
"""

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from nullbooth_cli.commands.hints import hint_of
from nullbooth_cli.errors import NullboothError
from nullbooth_cli.formatting import duration, rate
from nullbooth_cli.progress import Begin, Event, Note, Pace, Progress

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
            if isinstance(part, str) and not sys.stdout.isatty():
                sys.stdout.write(part + "\n")
            else:
                console.print(part, markup=False)

    def watch(
        self,
        documents: Iterable[dict[str, Any]],
        draw: Callable[[dict[str, Any]], list[Any]],
        line: Callable[[dict[str, Any]], str],
        essence: Callable[[dict[str, Any]], Any],
    ) -> None:
        """Show documents as they come: on a terminal in one place; elsewhere a line, or JSON, for each whose essence is new."""
        if not self.as_json and is_live(sys.stdout):
            from rich.console import Group
            from rich.live import Live
            from rich.text import Text

            with Live(console=_console(stderr=False), auto_refresh=False) as live:
                for document in documents:
                    parts = [Text(part) if isinstance(part, str) else part for part in draw(document)]
                    live.update(Group(*parts), refresh=True)
            return
        before = None
        for document in documents:
            if (now := essence(document)) != before:
                text = json.dumps(document, ensure_ascii=False, allow_nan=False) if self.as_json else line(document)
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
            before = now

    @property
    def is_for_eyes(self) -> bool:
        """Whether the answer is drawn on a terminal."""
        return not self.as_json and sys.stdout.isatty()

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
            document = {"error": error.message, "hint": hint_of(error), "exit_code": error.exit_code}
            sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
            return
        hint = hint_of(error).replace("\n", "\n      ")
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
        elif is_live(sys.stderr):
            self._follow_with_bars(events)
        else:
            self._follow_by_lines(events)

    def _follow_by_lines(self, events: Iterable[Event]) -> None:
        paces: dict[str, Pace] = {}
        said: dict[str, float] = {}
        for event in events:
            if isinstance(event, Note):
                self.note(event.text)
                continue
            now = time.monotonic()
            pace = paces.setdefault(event.stage, Pace(now, event.done))
            if isinstance(event, Progress):
                pace.mark(now, event.done)
                if event.done == event.total or now - said.get(event.stage, -LINE_SECONDS) >= LINE_SECONDS:
                    self.note(f"{event.stage} {event.done}/{event.total} {event.what} ({', '.join(_times(pace, event))})")
                    said[event.stage] = now

    def _follow_with_bars(self, events: Iterable[Event]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        console = _console(stderr=True)
        columns: list[ProgressColumn] = [
            TextColumn("{task.fields[stage]}", table_column=Column(min_width=10, no_wrap=True)),
            MofNCompleteColumn(table_column=Column(justify="right", no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(min_width=12, justify="right", no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(min_width=9, justify="right", no_wrap=True)),
            TextColumn("{task.fields[what]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        ]
        if console.width >= 70:
            columns.insert(2, TimeElapsedColumn())
        if console.width >= 80:
            columns.insert(1, BarColumn(bar_width=(console.width - 60) // 2))
        with Bars(*columns, console=console, expand=True) as bars:
            tasks: dict[str, Any] = {}
            paces: dict[str, Pace] = {}
            for event in events:
                if isinstance(event, Note):
                    bars.console.print(event.text, markup=False, highlight=False)
                    continue
                now = time.monotonic()
                if event.stage not in tasks:
                    paces[event.stage] = Pace(now, event.done)
                    tasks[event.stage] = bars.add_task("", total=event.total, stage=event.stage, rate="", left="", what="")
                # A task that is added as finished would never stop its clock.
                task, pace = tasks[event.stage], paces[event.stage]
                if isinstance(event, Begin):
                    bars.update(task, completed=event.done, what="the first unit")
                else:
                    pace.mark(now, event.done)
                    each, left = pace.seconds_per_unit, pace.seconds_left(event.total - event.done)
                    bars.update(
                        task,
                        completed=event.done,
                        rate="" if each is None else rate(each),
                        left="" if not left else f"{duration(left)} left",
                        what=event.what,
                    )


LINE_SECONDS = 1.0  # between two lines of a stage: six hundred quick units are not worth six hundred lines of a log


def _times(pace: Pace, event: Progress) -> Iterable[str]:
    yield duration(time.monotonic() - pace.began)
    if pace.seconds_per_unit is not None:
        yield rate(pace.seconds_per_unit)
    if left := pace.seconds_left(event.total - event.done):
        yield f"{duration(left)} left"


def is_live(stream: TextIO) -> bool:
    """Whether what stands on a stream can be drawn over."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


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


def table(columns: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset(), drop: tuple[str, ...] = ()) -> Any:
    """A plain table; the columns with index in `right` are aligned right. Cells are never cut: on a terminal they fold.

    Where it would not fit a terminal, columns are left out in the order of `drop`, and a last line names them.
    """
    from rich.console import Group
    from rich.text import Text

    left_out: list[str] = []
    console = _console(stderr=False)
    drawn = _table(columns, rows, right, left_out)
    for name in drop:
        if console.measure(drawn, options=console.options.update(max_width=100_000)).maximum <= console.width:
            break
        if name in columns:
            left_out.append(name)
            drawn = _table(columns, rows, right, left_out)
    return Group(drawn, Text(f"left out at this width: {', '.join(left_out)}")) if left_out else drawn


def _table(columns: list[str], rows: list[list[str]], right: frozenset[int], left_out: list[str]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    kept = [index for index, column in enumerate(columns) if column not in left_out]
    for index in kept:
        justify: Any = "right" if index in right else "left"
        drawn.add_column(columns[index], justify=justify, no_wrap=index in right, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(row[index]) for index in kept))
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
