"""The state of the stages of a store, their bytes on disk, and whether all of them can be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.differences import Difference
from nullbooth_cli.pipeline.state import StageState, bytes_of
from nullbooth_cli.report.json_document import OPTIONAL, Document
from nullbooth_cli.settings.config import STAGES
from nullbooth_cli.store import Store, leftovers, listed_tasks
from nullbooth_cli.store.pieces import DAMAGE, Damage, Piece
from nullbooth_cli.store.verify import check_tasks, run_checks


@dataclass(frozen=True, kw_only=True)
class Units:
    """The progress of a stage, or of its held-out prompts or attention maps; `units_total` is None until it is determined."""

    state: str
    units_done: int
    units_total: int | None


@dataclass(frozen=True, kw_only=True)
class StageReport(Units):
    """The progress of a stage, with its held-out prompts and its attention maps if it has them."""

    bytes: int
    stale_because: tuple[Difference, ...]
    heldout: Units | None = field(default=None, metadata=OPTIONAL)
    attention: Units | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class DamagedPiece:
    """A piece of a stage that cannot be read, and how to rebuild it."""

    stage: str
    error: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The number of pieces that were read, and those that are damaged."""

    checked: int
    damaged: tuple[DamagedPiece, ...]


@dataclass(frozen=True, kw_only=True)
class StatusReport(Document):
    """`renamed` are the names of the model that differ from those it was collected under.

    `tasks` are those that the store remembers; `unfinished_tasks` are left of runs that were stopped, and count for nothing.
    """

    store: str
    stages: Mapping[str, StageReport]
    renamed: tuple[Difference, ...]
    tasks: tuple[str, ...] = ()
    unfinished_tasks: tuple[str, ...] = ()
    verify: Verification | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class StageAnswer(Document):
    """The answer of collect and covariance, and of a project that is not complete."""

    store: str
    stage: str
    state: str
    units_done: int
    units_total: int | None
    bytes: int


def status_report(
    url: str,
    store: Store | None,
    states: Mapping[str, StageState],
    *,
    renamed: tuple[Difference, ...] = (),
    verify: Verification | None = None,
) -> StatusReport:
    """The state of every stage of the store at `url`; `store` is None where there is none yet."""
    stages = {stage: stage_report(store, stage, state) for stage, state in states.items()}
    tasks = () if store is None else tuple(entry.name for entry in listed_tasks(store))
    unfinished = () if store is None else tuple(leftovers(store))
    return StatusReport(store=url, stages=stages, renamed=renamed, tasks=tasks, unfinished_tasks=unfinished, verify=verify)


def stage_report(store: Store | None, stage: str, state: StageState) -> StageReport:
    """The state of one stage, with its bytes on disk."""
    return StageReport(
        state=state.state,
        units_done=state.units_done,
        units_total=state.units_total,
        bytes=bytes_of(store, stage) if store else 0,
        stale_because=state.stale_because,
        heldout=_units(state.heldout),
        attention=_units(state.attention),
    )


def stage_answer(stage: str, state: StageState, store: Store) -> StageAnswer:
    """The answer of a stage that has run."""
    return StageAnswer(
        store=store.url,
        stage=stage,
        state=state.state,
        units_done=state.units_done,
        units_total=state.units_total,
        bytes=bytes_of(store, stage),
    )


def _units(state: StageState | None) -> Units | None:
    if state is None:
        return None
    return Units(state=state.state, units_done=state.units_done, units_total=state.units_total)


def verify_store(store: Store, hint_of: Callable[[NullboothError], str] = lambda error: error.hint) -> Verification:
    """Read every piece of a store, its held-out prompts and tasks, and check that it is whole. Cost: one read of everything.

    `hint_of` phrases the hint of an error; by default it is a Python call.
    """
    checked, found = 0, list[tuple[str, NullboothError]]()

    def note(stage: str, piece: Piece | Damage) -> None:
        nonlocal checked
        checked += 1
        if isinstance(piece, Damage):
            found.append((stage, piece.error))

    def check(each: Store) -> None:
        for stage in (*STAGES, "attention"):
            for piece in run_checks(each, stage):
                note(stage, piece)

    check(store)
    try:
        heldout = store.heldout()
    except DAMAGE as error:
        note("collect", Damage(error=error))
    else:
        if heldout:
            check(heldout)
    for stage, piece in check_tasks(store):
        note(stage, piece)
    # The same metadata may be behind many pieces.
    errors = {error.message: DamagedPiece(stage=stage, error=error.message, hint=hint_of(error)) for stage, error in found}
    return Verification(checked=checked, damaged=tuple(errors.values()))
