"""Stage project under a config."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import DecompositionSettings, Pooling
from nullbooth_cli.pipeline.differences import remembered_settings
from nullbooth_cli.pipeline.run import Prepared, Run, my_units, prepare, report_units, start_stage, units_to_do
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import decomposition_settings
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD
from nullbooth_cli.store import Store


def require_inputs(config: Config) -> None:
    """Raise ConfigError for a collection of outputs: no projector can be made from them."""
    if config.collect.side == "output":
        raise ConfigError(
            "these features are outputs (collect.side: output); a projector must come from the inputs of the edited weight",
            "set collect.side to input, and collect into another store",
        )


def pooling_of(config: Config) -> Pooling:
    """The timesteps that a config pools, and their weights."""
    section = config.project
    return Pooling(section.scope, section.timesteps, section.pool_weight)


def decomposition_of(config: Config, store: Store) -> DecompositionSettings:
    """How a config decomposes the moments of a store."""
    return DecompositionSettings(
        pooling_of(config),
        store.schedule(),
        centred=config.covariance.centred,
        accumulate=config.covariance.accumulate,
        batch_size=store.layout.batch_size,
        heldout=config.heldout_prompts is not None,
    )


def decomposition_basis(config: Config, store: Store) -> dict[str, Any]:
    """Everything that the stored decompositions depend on. While it is the same, they serve any threshold."""
    covariance = store.records["covariance"]
    heldout = store.heldout() if config.heldout_prompts is not None else None
    return {
        "settings": decomposition_settings(config),
        "upstream": covariance["fingerprint"],
        "rows": covariance["rows"]["digest"],
        HELDOUT_FIELD: None if heldout is None else heldout.records["covariance"]["rows"]["digest"],
        **remembered_settings(store),
    }


def run_project(run: Run) -> Iterator[Event]:
    """Decompose the moments, and cut each spectrum by the threshold rule in force.

    Raises ConfigError for outputs, and for an empty null space unless the config freezes it. Cost: one eigendecomposition of
    every moment `[D, D]`; none for another threshold.
    """
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.nullspace.decompose import ProjectUnit, project

    store, section = run.store, run.config.project
    prepared = prepare(run, lambda: _prepare_project(run))
    yield from map(Note, prepared.notes)
    settings = decomposition_of(run.config, store)
    every = settings.pooling.units(store.sites, settings.steps)
    mine = (ProjectUnit(number, *every[number]) for number in my_units(run, prepared))
    device = pick_device(run.device or run.workers.device)
    rule, value = section.rule()
    units = project(store, device, settings, mine, rule=rule, value=value, may_be_empty=section.empty == "freeze")
    yield from report_units(run, "project", prepared, (unit.site.name for unit in units))


def _prepare_project(run: Run) -> Prepared:
    """Make room for decompositions, unless those that are stored serve this config too."""
    from nullbooth_cli.pipeline import space

    section, store, notes = run.config.project, run.store, list[str]()
    require_inputs(run.config)
    if section.nullspace_threshold is not None and section.threshold_percent is not None:
        notes.append("nullspace_threshold and threshold_percent are both set: the percentile is in force")
    sites, steps, pooling = store.sites, store.schedule(), pooling_of(run.config)
    units = pooling.units(sites, steps)
    found = run.states().own["project"]
    if found.state == "missing" or run.force:
        basis = decomposition_basis(run.config, store)
        if found.state != "stale" or store.records.get("decomposition") != basis or _is_damaged(store):
            num_tasks = len(basis.get("tasks", ()))
            needed = space.decompositions_nbytes(units, run.config.covariance.factoring(), num_tasks)
            space.ensure_room(store, needed - store.nbytes("projectors"))
            store.write_record("decomposition", None)
            store.write_record("project", None)
            store.projectors.create(sites, Counter(site.name for site, _ in units), store.moments.rows, num_tasks=num_tasks)
            store.write_record("decomposition", basis)
        store.write_record("project", None)
        store.progress.create("project", len(units))
        start_stage(run, "project")
    prepared = units_to_do(run, "project", bool, notes)
    prepared.todo.sort(key=lambda unit: units[unit][0].dim)  # those of one size are decomposed together
    return prepared


def _is_damaged(store: Store) -> bool:
    """Whether a stored decomposition cannot be read. Cost: one read of all of them."""
    from nullbooth_cli.store.pieces import Damage
    from nullbooth_cli.store.verify import run_checks

    return any(isinstance(found, Damage) for found in run_checks(store, "project"))
