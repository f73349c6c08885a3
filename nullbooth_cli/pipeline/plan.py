"""Plans of stages: the work, time and space that a run would take. Nothing is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nullbooth_cli.collect.open_model import compute_steps
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.pipeline.project import pooling_of
from nullbooth_cli.pipeline.run import layout_of
from nullbooth_cli.pipeline.state import StageState, stage_states
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.store import Layout, Store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a stage: units, seconds (from units measured here before), and bytes needed and free.

    `operations` are floating point operations of the denoiser, None where they were not counted; `bytes_free` is None where the
    place of the store cannot report it.
    """

    stage: str
    units_done: int
    units_total: int
    seconds: float | None
    bytes_needed: int
    bytes_free: int | None
    device: str
    device_bytes_needed: int
    device_bytes_free: int
    operations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """The inputs of a plan, once the steps and the sites are known.

    `device` is the name of the device, `free` the bytes free where the store is (None if unknown), `paces` the seconds per unit
    of stages that the store has none for, `operations` those of the denoiser for one prompt.
    """

    config: Config
    prompts: Sequence[Prompt]
    store: Store | None
    states: Mapping[str, StageState]
    steps: Sequence[Step]
    sites: Sequence[Site]
    device: str
    free: int | None = None
    paces: Mapping[str, float] = field(default_factory=dict)
    operations: int | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the collection that is there, or that the config would start."""
        started = self.store is not None and "collect" in self.store.records
        return self.store.layout if started and self.store else layout_of(self.config.collect)


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A whole stage: its units, the bytes that it writes, and the bytes of its sums and matrices on the device."""

    units: int
    nbytes: int
    on_device: int


def plan(
    stages: Sequence[str],
    config: Config,
    prompts: tuple[Prompt, ...],
    store: Store | None,
    *,
    device: str | None = None,
    free: int | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> list[Plan]:
    """The plans of stages; `free` are the bytes free where the store is.

    Cost: seconds. The sites come from the collection if it is current, else from the model's config files. If those do not give
    the shapes, the model is loaded, after a call of `on_note`.
    """
    from nullbooth_cli.collect.open_model import open_preview
    from nullbooth_cli.model.device import pick_device

    states = stage_states(config, prompts, store)
    chosen = pick_device(device)
    if store is not None and states["schedule"].state == "complete":
        steps = store.schedule()
    else:
        _, steps = compute_steps(config, len(prompts), device)
    operations: int | None = None
    sites: tuple[Site, ...] = ()
    if tuple(stages) == ("schedule",):
        pass  # it needs none
    elif store is not None and states["collect"].state in ("complete", "partial", "released"):
        sites = store.sites
    else:
        shapes = open_preview(config, device, on_note)
        found = shapes.find(shapes.chosen)
        sites, operations = found.sites, shapes.count_operations(found, len(steps))
    work = Work(
        config=config,
        prompts=prompts,
        store=store,
        states=states,
        steps=steps,
        sites=sites,
        device=str(chosen),
        free=free,
        operations=operations,
    )
    return plan_for(stages, work)


def plan_for(stages: Sequence[str], work: Work) -> list[Plan]:
    """The plans of stages, where the steps and the sites are known. Writes and loads nothing."""
    from nullbooth_cli.model.device import free_memory, pick_device

    sizes, device_free = _sizes(work), free_memory(pick_device(work.device))
    return [_plan_one(stage, work, sizes[stage], device_free) for stage in stages]


def _sizes(work: Work) -> dict[str, _Size]:
    """Every stage as if nothing were done."""
    from nullbooth_cli.collect.sinks import features_nbytes
    from nullbooth_cli.nullspace.moments import sums_nbytes
    from nullbooth_cli.pipeline.space import decompositions_nbytes
    from nullbooth_cli.store.layout import covariance_units

    section, num_steps, num_prompts = work.config.collect, len(work.steps), len(work.prompts)
    project_units = pooling_of(work.config).units(work.sites, work.steps)
    factoring = work.config.covariance.factoring()
    sums, folding = (sums_nbytes(work.sites, num_steps, factoring, in_memory=where) for where in (False, True))
    largest = max((site.dim * factoring.rows(site.dim) for site in work.sites), default=0)
    summed = max((sums_nbytes([site], 1, factoring, in_memory=True) for site in work.sites), default=0)
    asked = layout_of(section)
    features = features_nbytes(work.sites, num_steps, num_prompts, asked.dtype) if asked.keeps_features else 0
    return {
        "schedule": _Size(units=1, nbytes=num_steps * 32, on_device=0),
        "collect": _Size(units=asked.num_units(num_prompts), nbytes=features, on_device=folding if asked.keeps_moments else 0),
        "covariance": _Size(units=len(covariance_units(work.sites, num_steps, work.layout)), nbytes=sums, on_device=summed),
        "project": _Size(
            units=len(project_units), nbytes=decompositions_nbytes(project_units, factoring), on_device=3 * 8 * largest
        ),
    }


def _plan_one(stage: str, work: Work, whole: _Size, device_free: int) -> Plan:
    from nullbooth_cli.nullspace.moments import sums_nbytes

    state, asked = work.states[stage], layout_of(work.config.collect)
    done, total = 0, whole.units
    if state.state not in ("missing", "stale"):
        done, total = state.units_done, state.units_total or total
    pace = work.store.progress.pace(stage) if work.store is not None and stage != "schedule" else None
    pace = work.paces.get(stage) if pace is None else pace
    needed, to_do, operations = whole.nbytes * (total - done) // (total or 1), total - done, None
    if stage == "collect":
        sums = sums_nbytes(work.sites, len(work.steps), work.config.covariance.factoring())
        heldout = heldout_prompts(work.config)
        if asked.keeps_moments and not done:
            needed += 2 * sums
        if state.heldout is not None and not state.heldout.is_done:
            to_do += asked.num_units(len(heldout)) - state.heldout.units_done
            needed += 3 * sums
        if work.operations is not None:
            operations = work.operations * min(to_do * asked.batch_size, len(work.prompts) + len(heldout))
    return Plan(
        stage=stage,
        units_done=done,
        units_total=total,
        seconds=None if pace is None else pace * to_do,
        bytes_needed=needed,
        bytes_free=work.free,
        device=work.device,
        device_bytes_needed=whole.on_device,
        device_bytes_free=device_free,
        operations=operations,
    )
