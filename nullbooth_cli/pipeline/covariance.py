"""Stage covariance under a config."""

from collections.abc import Iterator, Sequence
from typing import Any

from nullbooth_cli.datatypes import Step
from nullbooth_cli.errors import StageError
from nullbooth_cli.pipeline.run import Prepared, Run, report_units, start_stage, units_to_do
from nullbooth_cli.pipeline.state import covered_rows, own_states
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.store import RELEASED


def run_covariance(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.nullspace.covariance import CovarianceUnit, covariance
    from nullbooth_cli.store.layout import covariance_units

    prepared = Prepared(**run.workers.agree(lambda: _begin_covariance(run)))
    run.store.reload()
    yield from map(Note, prepared.notes)
    steps = run.store.schedule()
    every = covariance_units(run.store.sites, len(steps), run.store.layout)
    numbers = (prepared.todo[i] for i in run.workers.share(len(prepared.todo)))
    mine = (CovarianceUnit(number, *every[number]) for number in numbers)
    device = pick_device(run.device or run.workers.device)
    units = covariance(run.store, device, run.config.covariance.accumulate, mine)
    yield from report_units(run, "covariance", prepared, (f"{unit.site.name} {_keys(steps, unit.timesteps)}" for unit in units))
    if run.workers.rank == 0:
        run.store.delete("staged")


def _keys(steps: Sequence[Step], block: range) -> str:
    return " to ".join(steps[t].key for t in dict.fromkeys((block[0], block[-1])))


def _begin_covariance(run: Run) -> dict[str, Any]:
    from nullbooth_cli.nullspace import moments
    from nullbooth_cli.pipeline import space
    from nullbooth_cli.store.verify import forget_damaged

    store, notes = run.store, []
    store.reload()
    sites, num_steps = store.sites, store.num_steps
    found = own_states(run.config, run.prompts, store)["covariance"]
    afresh = found.state in ("missing", "stale") or run.force
    released = store.layout.keep == "features" and bool((store.progress.cells("collect") == RELEASED).any())
    if released and (afresh or run.repair):
        raise StageError(
            f"the features in {store.url} were released, and moments cannot be made without them",
            "nullbooth collect --force collects them again",
        )
    if afresh:
        space.ensure_room(store, moments.sums_nbytes(sites, num_steps) - store.nbytes("moments"))
        store.write_record("covariance", None)
        store.moments.create(sites, num_steps, store.layout)
    elif run.repair:
        notes.append(forget_damaged(store, "covariance"))
    start_stage(run, "covariance", rows=covered_rows(store))
    target = len(store.progress.cells("collect"))
    return units_to_do(run, "covariance", lambda cell: cell == target, notes)
