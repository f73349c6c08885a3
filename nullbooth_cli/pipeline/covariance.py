"""Stage covariance under a config."""

from collections.abc import Iterator, Sequence

from nullbooth_cli.datatypes import Step
from nullbooth_cli.errors import Rerun, StageError
from nullbooth_cli.pipeline.differences import covered_rows
from nullbooth_cli.pipeline.run import Prepared, Run, my_units, prepare, report_units, start_stage, units_to_do
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.store import RELEASED, STAGED, Store


def run_covariance(run: Run) -> Iterator[Event]:
    """Add the vectors that the moments lack, one block of timesteps of a site at a time.

    Raises StageError if the features that it needs were released. Cost: one read of those features, or of the partial sums.
    """
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.nullspace.covariance import CovarianceUnit, covariance
    from nullbooth_cli.store.layout import covariance_units

    prepared = prepare(run, lambda: _prepare_covariance(run))
    yield from map(Note, prepared.notes)
    steps = run.store.schedule()
    every = covariance_units(run.store.sites, len(steps), run.store.layout)
    mine = (CovarianceUnit(number, *every[number]) for number in my_units(run, prepared))
    device = pick_device(run.device or run.workers.device)
    section = run.config.covariance
    units = covariance(run.store, device, section.accumulate, mine, section.factoring())
    yield from report_units(
        run, "covariance", prepared, (f"{unit.site.name} {_keys(unit.site.recorded(steps), unit.timesteps)}" for unit in units)
    )
    # A unit that is not done may have nothing but its staged moments, which a kill or another process left.
    if run.workers.rank == 0 and run.store.arrays.has("staged"):  # else it is not worth reading every cell
        target = len(run.store.progress.cells("collect"))
        if (run.store.progress.cells("covariance") == target).all():
            run.store.delete("staged")


def _keys(steps: Sequence[Step], block: range) -> str:
    """The first and the last step of a block, by their keys."""
    return " to ".join(steps[t].key for t in dict.fromkeys((block[0], block[-1])))


def _prepare_covariance(run: Run) -> Prepared:
    """Make room for moments that are started afresh, or mark the damaged ones as not done."""
    from nullbooth_cli.nullspace import moments
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.store.verify import forget_damaged

    store, notes = run.store, list[str]()
    sites, num_steps = store.sites, store.num_steps
    afresh = run.states().own["covariance"].state in ("missing", "stale") or run.force
    if afresh:
        _require_features(store, 0)
        factoring = run.config.covariance.factoring()
        space.ensure_room(store, moments.sums_nbytes(sites, num_steps, factoring) - store.nbytes("moments"))
        store.write_record("covariance", None)
        store.moments.create(sites, num_steps, store.layout, factoring)
    elif run.repair:
        notes.append(forget_damaged(store, "covariance"))
    # A cell holds the number of collect's units that its sums were made from.
    target, cells = len(store.progress.cells("collect")), store.progress.cells("covariance")
    _require_features(store, min((int(cell) & ~STAGED for cell in cells if cell != target), default=target))
    start_stage(run, "covariance", rows=covered_rows(store))
    return units_to_do(run, "covariance", lambda cell: cell == target, notes)


def _require_features(store: Store, covered: int) -> None:
    """Raise StageError if a unit that moments of the first `covered` units lack was released."""
    if store.layout.keep == "features" and (store.progress.cells("collect")[covered:] == RELEASED).any():
        raise StageError(
            f"the features in {store.url} were released, and moments cannot be computed without them",
            Rerun("collect", force=True, otherwise=" to collect them again"),
        )
