"""What a running stage reports about itself, and how fast it is.

Stages are generators of events, and commands draw them: the library never prints.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
FEWEST_MARKS = 5  # that a pace is taken from, where units take longer than the window
BURST_SECONDS = 0.1  # units that were made durable together are reported together


class Pace:
    """Seconds per unit over the last minute, or over the last five reports if they took longer.

    `now` is any clock in seconds, `done` the units finished by then. An average over the whole run would tell of its slow start
    and of processes that are gone.
    """

    def __init__(self, now: float, done: int = 0) -> None:
        self.began = now
        self._marks = deque([(now, done)])

    def mark(self, now: float, done: int) -> None:
        last, _ = self._marks[-1]
        if len(self._marks) > 1 and now - last < BURST_SECONDS:
            self._marks[-1] = (last, done)
        else:
            self._marks.append((now, done))
        while len(self._marks) > FEWEST_MARKS + 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def seconds_per_unit(self) -> float | None:
        """None before the first unit."""
        (before, done_before), (last, done) = self._marks[0], self._marks[-1]
        return (last - before) / (done - done_before) if done > done_before and last > before else None

    def seconds_left(self, units: int) -> float | None:
        """Until so many more units are done, at this pace."""
        each = self.seconds_per_unit
        return None if each is None else units * each


@dataclass(frozen=True)
class Begin:
    """A stage begins its units, or goes on with them: `done` of `total` are finished."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units are finished; `what` is the one that just was."""

    stage: str
    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Note:
    """Something the user should know that is not an error."""

    text: str


Event = Begin | Progress | Note


@dataclass
class Interrupts:
    """What a running stage and the receiver of signals tell each other.

    While a stage is `unwritten`, work is done that is not written yet: an interrupt is then noted as `requested`, and the stage
    ends after its unit. At any other time it ends at once.
    """

    unwritten: bool = False
    requested: bool = False
