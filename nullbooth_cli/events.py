"""What a running stage says about itself. Stages are generators of events; commands draw them. The library never prints."""

from dataclasses import dataclass


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

    While a stage is `holding`, work is done that is not written yet: an interrupt is then noted as `requested`, and the stage
    ends after its unit. At any other time it ends at once.
    """

    holding: bool = False
    requested: bool = False
