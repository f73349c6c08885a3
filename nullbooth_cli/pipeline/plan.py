"""What running a stage would do and take, without writing anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nullbooth_cli.collect.open_model import compute_steps
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.pipeline.project import pooling_of
from nullbooth_cli.pipeline.run import layout_of
from nullbooth_cli.pipeline.state import StageState, stage_states
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.store import Store


@dataclass(frozen=True)
class Plan:
    """What a stage would do: units, seconds (from units measured here before), and bytes against those that are free."""

    stage: str
    units_done: int
    units_total: int
    seconds: float | None
    bytes_needed: int
    bytes_free: int | None
    device: str
    device_bytes_needed: int
    device_bytes_free: int
    operations: int | None = None  # floating point operations of the denoiser, where they were counted


def plan(
    wanted: tuple[str, ...],
    config: Config,
    prompts: tuple[Prompt, ...],
    store: Store | None,
    device: str | None,
    free: int | None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Plan]:
    """The plans of stages; `free` are the bytes free where the store is.

    Cost: seconds. Unless a current collection says which sites there are, the model's config files do; a model whose shapes they
    do not say is loaded, and `say` hears of it.
    """
    from nullbooth_cli.collect.preview import open_preview
    from nullbooth_cli.model.device import pick_device

    found = stage_states(config, prompts, store)
    chosen = pick_device(device)
    if store is not None and found["schedule"].state == "complete":
        steps = store.schedule()
    else:
        _, steps = compute_steps(config, len(prompts), device)
    operations: int | None = None
    if wanted == ("schedule",):
        sites: tuple[Site, ...] = ()
    elif store is not None and found["collect"].state in ("complete", "partial", "released"):
        sites = store.sites
    else:
        shapes = open_preview(config, device, say)
        recordings = shapes.find(shapes.chosen())
        sites, operations = recordings.sites, shapes.count_operations(recordings, len(steps))
    return plan_for(wanted, config, prompts, store, str(chosen), free, found, steps, sites, {}, operations)


def plan_for(
    wanted: tuple[str, ...],
    config: Config,
    prompts: tuple[Prompt, ...],
    store: Store | None,
    device: str,
    free: int | None,
    found: Mapping[str, StageState],
    steps: Sequence[Step],
    sites: Sequence[Site],
    paces: Mapping[str, float],
    operations: int | None = None,
) -> list[Plan]:
    """The same, of stages in the states `found`, where the steps and the sites are known.

    `paces` are seconds per unit that count where the store has none, `operations` the denoiser's for one prompt.
    """
    from nullbooth_cli.collect import sinks
    from nullbooth_cli.model.device import free_memory, pick_device
    from nullbooth_cli.nullspace import moments
    from nullbooth_cli.pipeline.space import decompositions_nbytes
    from nullbooth_cli.store import layout

    kept_in = store.layout if store is not None and "collect" in store.records else layout_of(config.collect)
    covariance_units = layout.covariance_units(sites, len(steps), kept_in)
    project_units = pooling_of(config).units(sites, steps)
    sums, widest = moments.sums_nbytes(sites, len(steps)), max((site.dim for site in sites), default=0)
    keep = config.collect.keep
    kept = sinks.features_nbytes(sites, len(steps), len(prompts), config.collect.feature_dtype) if keep != "moments" else 0
    totals = {
        "schedule": (1, len(steps) * 32, 0),
        "collect": (
            -(-len(prompts) // config.collect.batch_size),
            kept,
            sums if keep != "features" else 0,
        ),
        "covariance": (len(covariance_units), sums, 8 * widest * (widest + 1)),
        "project": (len(project_units), decompositions_nbytes(project_units), 3 * 8 * widest * widest),
    }
    plans, device_free = [], free_memory(pick_device(device))
    for stage in wanted:
        total, needed, on_device = totals[stage]
        done, pace = 0, None
        if found[stage].state not in ("missing", "stale"):
            done, total = found[stage].units_done, found[stage].units_total or total
        if store is not None and stage != "schedule":
            pace = store.progress.pace(stage)
        pace = paces.get(stage) if pace is None else pace
        needed = needed * (total - done) // (total or 1)
        if stage == "collect" and keep != "features" and not done:
            needed += 2 * sums
        to_do = total - done
        if stage == "collect" and (held := found[stage].heldout) is not None and not held.is_done:
            to_do += -(-len(heldout_prompts(config)) // config.collect.batch_size) - held.units_done
            needed += 3 * sums
        seconds = None if pace is None else pace * to_do
        work = None
        if stage == "collect" and operations is not None:
            work = operations * min(to_do * config.collect.batch_size, len(prompts) + len(heldout_prompts(config)))
        plans.append(Plan(stage, done, total, seconds, needed, free, device, on_device, device_free, work))
    return plans
