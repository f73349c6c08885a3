"""Events of a running stage, and its pace.

Stages are generators of events; commands draw them. The library never prints.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
WINDOW_SECONDS = 60.0
FEWEST_MARKS = 5  # a pace covers at least this many, even if they took longer than the window
BURST_SECONDS = 0.1  # units that were written together are reported together, and count as one mark


class Pace:
    """Seconds per unit over the last minute, or over the last five marks if they took longer.

    `now` is any clock in seconds, `done` the number of units finished by then. An average over the whole run would include its
    slow start and processes that have ended.
    """

    def __init__(self, now: float, done: int = 0) -> None:
        self.began = now
        self._marks = deque([(now, done)])

    def mark(self, now: float, done: int) -> None:
        """Note that `done` units are finished at `now`."""
        last, _ = self._marks[-1]
        if len(self._marks) > 1 and now - last < BURST_SECONDS:
            self._marks[-1] = (last, done)
        else:
            self._marks.append((now, done))
        while len(self._marks) > FEWEST_MARKS + 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def seconds_per_unit(self) -> float | None:
        """The pace; None before the first unit."""
        (before, done_before), (last, done) = self._marks[0], self._marks[-1]
        return (last - before) / (done - done_before) if done > done_before and last > before else None

    def seconds_left(self, units: int) -> float | None:
        """Seconds until `units` more are done, at this pace; None before the first unit."""
        each = self.seconds_per_unit
        return None if each is None else units * each


@dataclass(frozen=True)
class Begin:
    """A stage starts or resumes: `done` of `total` units are finished."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units are finished; `what` names the last one."""

    stage: str
    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Note:
    """Something the user should know that is not an error."""

    text: str


Event = Begin | Progress | Note


def result_of(events: Generator[Event, None, Result], on_event: Callable[[Event], None]) -> Result:
    """The result of work that yields events; `on_event` is called with each."""
    while True:
        try:
            event = next(events)
        except StopIteration as ended:
            result: Result = ended.value
            return result
        on_event(event)


@dataclass
class Interrupts:
    """Flags between a running stage and the signal handler.

    The stage sets `unwritten` while it has results that are not on disk. The handler then only sets `requested`, and the stage
    stops after its unit; at any other time an interrupt stops the stage at once.
    """

    unwritten: bool = False
    requested: bool = False
