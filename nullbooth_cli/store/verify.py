"""Reads every piece that progress marks as done, and marks damaged units as not done, so that a run does them again."""

from collections.abc import Iterator

from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.formatting import listed
from nullbooth_cli.store.backing import UnreadableError
from nullbooth_cli.store.pieces import DAMAGE, Damage, Piece, pieces
from nullbooth_cli.store.store import Store
from nullbooth_cli.store.tasks import listed_tasks, open_task

TASK_STAGES = ("schedule", "collect", "covariance")


def run_checks(store: Store, stage: str) -> Iterator[Piece | Damage]:
    """Read every piece of a stage; yields the piece if it is whole, else the damage. Cost: one read of everything."""
    groups: set[str] = set()
    for piece in pieces(store, stage):
        if isinstance(piece, Damage):
            yield piece
            continue
        groups |= set(_groups_above(piece.key)) if piece.key else set()
        if not piece.is_certain and piece.key and store.arrays.backing.get(piece.key) is None:
            continue
        try:
            piece.read()
        except DAMAGE as error:
            yield Damage(error=error, units=piece.units, partial_sums=piece.partial_sums)
        else:
            yield piece
    yield from _damaged_groups(store, stage, groups)


def check_tasks(store: Store) -> Iterator[tuple[str, Piece | Damage]]:
    """`run_checks` of all that each task of a store has; yields the stage with each. Cost: one read of all of it."""
    for entry in listed_tasks(store):
        try:
            task = open_task(store, entry)
        except DAMAGE as error:
            yield "project", Damage(error=error)
        else:
            for stage in TASK_STAGES:
                for found in run_checks(task.store, stage):
                    yield stage, found


def require_tasks_whole(store: Store) -> None:
    """Raise the error of the first damage of a task. Cost: one read of them."""
    for _, found in check_tasks(store):
        if isinstance(found, Damage):
            raise found.error


def _groups_above(key: str) -> Iterator[str]:
    """The groups that the array of a chunk is in; those of `parts` have values, and are pieces themselves."""
    names = key.split("/")[:-2]
    return ("/".join(names[: i + 1]) for i in range(1 if names[0] == "parts" else len(names)))


def _damaged_groups(store: Store, stage: str, groups: set[str]) -> Iterator[Damage]:
    """The groups without sound metadata: to other programs, what is below them is not there."""
    for name in sorted(groups | ({"progress"} if stage == "collect" else set())):
        try:
            store.arrays.require_group(name)
        except StoreError as error:
            hint: Rerun | str = error.rerun or error.hint
            if error.rerun and stage in ("collect", "covariance"):  # which a repair fixes, without doing any unit again
                hint = Rerun(stage, repair=True, store=store.arrays.place)
            yield Damage(error=StoreError(error.message, hint), group=name)
        except UnreadableError as error:
            yield Damage(error=error)


def forget_damaged(store: Store, stage: str) -> str:
    """Mark the damaged units of collect, covariance or attention as not done. Returns a sentence for the user.

    Raises the error of damage that units done again would leave, such as that of the prompts or of an array's shape, and of
    files that only cannot be read. Cost: one read of everything.
    """
    found = [damage for damage in run_checks(store, stage) if isinstance(damage, Damage)]
    groups = [damage.group for damage in found if damage.group]
    for damage in found:
        if damage.group:
            continue
        rerun = damage.error.rerun
        if not damage.units or not isinstance(damage.error, StoreError) or (rerun and rerun.force):
            raise damage.error
    units = sorted({unit for damage in found for unit in damage.units})
    store.arrays.make_groups(groups)
    store.progress.mark(stage, units, 0)
    for name in sorted({damage.partial_sums.name for damage in found if damage.partial_sums}):
        store.delete(f"parts/{name}")
    if not found:
        return f"nothing of {stage} is damaged"
    errors = list(dict.fromkeys(damage.error.message for damage in found))
    return f"{len(units)} damaged units of {stage} are done again{listed(errors, lines=True)}"
