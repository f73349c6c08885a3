"""Stage project under a config."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import Decomposing, Pooling
from nullbooth_cli.pipeline.run import Prepared, Run, report_units, start_stage, units_to_do
from nullbooth_cli.pipeline.state import own_states
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import decomposition_settings
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD
from nullbooth_cli.store import Store


def require_inputs(config: Config) -> None:
    """Raise ConfigError if what is collected are outputs, which make no projectors."""
    if config.collect.side == "output":
        raise ConfigError(
            "these features are outputs (collect.side: output); a projector must come from the inputs of the edited weight",
            "collect with collect.side: input into another store",
        )


def pooling_of(config: Config) -> Pooling:
    section = config.project
    return Pooling(section.scope, section.timesteps, section.pool_weight)


def decomposing(config: Config, store: Store) -> Decomposing:
    """How a config decomposes the moments of a store."""
    return Decomposing(
        pooling_of(config),
        store.schedule(),
        centred=config.covariance.centred,
        accumulate=config.covariance.accumulate,
        heldout=config.heldout_prompts is not None,
    )


def decomposition_basis(config: Config, store: Store) -> dict[str, Any]:
    """What the stored decompositions depend on: they serve any threshold as long as this is the same."""
    covariance = store.records["covariance"]
    heldout = store.heldout() if config.heldout_prompts is not None else None
    return {
        "settings": decomposition_settings(config),
        "upstream": covariance["fingerprint"],
        "rows": covariance["rows"]["digest"],
        HELDOUT_FIELD: None if heldout is None else heldout.records["covariance"]["rows"]["digest"],
    }


def run_project(run: Run) -> Iterator[Event]:
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.nullspace.decompose import ProjectUnit, project

    store = run.store
    prepared = Prepared(**run.workers.agree(lambda: _begin_project(run)))
    store.reload()
    yield from map(Note, prepared.notes)
    settings = decomposing(run.config, store)
    every = settings.pooling.units(store.sites, settings.steps)
    numbers = (prepared.todo[i] for i in run.workers.share(len(prepared.todo)))
    mine = (ProjectUnit(number, *every[number]) for number in numbers)
    device = pick_device(run.device or run.workers.device)
    section = run.config.project
    rule, value = section.rule()
    may_be_empty = section.empty == "freeze"
    units = project(store, device, settings, mine, rule=rule, value=value, may_be_empty=may_be_empty)
    yield from report_units(run, "project", prepared, (unit.site.name for unit in units))


def _begin_project(run: Run) -> dict[str, Any]:
    from nullbooth_cli.pipeline import space

    section, store, notes = run.config.project, run.store, []
    store.reload()
    require_inputs(run.config)
    if section.nullspace_threshold is not None and section.threshold_percent is not None:
        notes.append("nullspace_threshold and threshold_percent are both set: the percentile is in force")
    sites, steps, pooling = store.sites, store.schedule(), pooling_of(run.config)
    units = pooling.units(sites, steps)
    found = own_states(run.config, run.prompts, store)["project"]
    if found.state == "missing" or run.force:
        basis = decomposition_basis(run.config, store)
        if found.state != "stale" or store.records.get("decomposition") != basis:
            space.ensure_room(store, space.decompositions_nbytes(units) - store.nbytes("projectors"))
            store.write_record("decomposition", None)
            store.write_record("project", None)
            store.projectors.create(sites, Counter(site.name for site, _ in units))
            store.write_record("decomposition", basis)
        store.write_record("project", None)
        store.progress.create("project", len(units))
        start_stage(run, "project")
    prepared = units_to_do(run, "project", bool, notes)
    prepared["todo"].sort(key=lambda unit: units[unit][0].dim)  # those of one size are decomposed together
    return prepared
