"""The events of running stages as lines of a log, or as bars. Nothing here prints."""

import time
from typing import TYPE_CHECKING

from nullbooth_cli.formatting import duration, rate
from nullbooth_cli.progress import Begin, Event, Note, Pace, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

LINE_SECONDS = 5.0  # between two lines of a stage: the log of an hour must not be thousands of lines long
NARROW, WIDE = 70, 80  # a terminal of this many columns also shows the time; of this many, bars too


class ProgressLines:
    """Turns events into lines: every note, and for each stage its first unit, its last, and one in `LINE_SECONDS` between."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}
        self._written: dict[str, float] = {}

    def line(self, event: Event) -> str | None:
        """The line for an event, or None if it needs none."""
        if isinstance(event, Note):
            return event.text
        now = time.monotonic()
        pace = self._paces.setdefault(event.stage, Pace(now, event.done))
        if isinstance(event, Begin):
            return None
        pace.mark(now, event.done)
        if event.done < event.total and now - self._written.get(event.stage, float("-inf")) < LINE_SECONDS:
            return None
        self._written[event.stage] = now
        return f"{event.stage} {event.done}/{event.total} {event.what} ({', '.join(_times(pace, event, now))})"


def _times(pace: Pace, event: Progress, now: float) -> list[str]:
    each, left = pace.seconds_per_unit, pace.seconds_left(event.total - event.done)
    times = [duration(now - pace.began)]
    times += [] if each is None else [rate(each)]
    times += [f"{duration(left)} left"] if left else []
    return times


class ProgressBars:
    """A bar for each stage. Enter `display` while events are shown; it is rich's live display."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import Progress as Display

        self.display = Display(*_columns(console.width), console=console, expand=True)
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}

    def update(self, event: Begin | Progress) -> None:
        """Move the bar of a stage; the first event of a stage adds it."""
        now = time.monotonic()
        if event.stage not in self._tasks:
            self._paces[event.stage] = Pace(now, event.done)
            # Without `completed`: a task that is added as finished would never stop its clock.
            self._tasks[event.stage] = self.display.add_task("", total=event.total, stage=event.stage, rate="", left="", what="")
        task, pace = self._tasks[event.stage], self._paces[event.stage]
        if isinstance(event, Begin):
            self.display.update(task, completed=event.done, what="the first unit")
            return
        pace.mark(now, event.done)
        each, left = pace.seconds_per_unit, pace.seconds_left(event.total - event.done)
        self.display.update(
            task,
            completed=event.done,
            rate="" if each is None else rate(each),
            left=f"{duration(left)} left" if left else "",
            what=event.what,
        )


def _columns(width: int) -> "list[ProgressColumn]":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns: list[ProgressColumn] = [
        TextColumn("{task.fields[stage]}", table_column=Column(min_width=10, no_wrap=True)),
        MofNCompleteColumn(table_column=Column(justify="right", no_wrap=True)),
        TextColumn("{task.fields[rate]}", table_column=Column(min_width=12, justify="right", no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(min_width=9, justify="right", no_wrap=True)),
        TextColumn("{task.fields[what]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    ]
    if width >= NARROW:
        columns.insert(2, TimeElapsedColumn())
    if width >= WIDE:
        columns.insert(1, BarColumn(bar_width=(width - 60) // 2))
    return columns
