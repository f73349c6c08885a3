"""The state of every stage under a config, read from the records that the stages leave in the store.

A stage leaves a record in the store: its settings, the fingerprints of the stages it was built on, and its own. A stage is

- missing   if it has no record,
- stale     if its settings or one of its inputs are not what the config asks for now,
- partial   if some of its units are not done (prompts that were added make new ones),
- released  if all were done and the features were then removed on request,
- complete  otherwise.

The held-out prompts have a store of their own inside the store. Collect and covariance are done when those of both are.
Reading the states costs one read of every progress cell, and one listing of the objects that the cells mark as done: a store that
was copied without part of its files is damaged. Read the states once and hand them on.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import HELDOUT, Prompt
from nullbooth_cli.errors import NullboothError, Rerun, StageError
from nullbooth_cli.formatting import listed
from nullbooth_cli.pipeline.differences import (
    Difference,
    added_prompts,
    attention_settings,
    covered_rows,
    differing,
    remembered_settings,
    removed_prompts,
    wanted_settings,
)
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.settings.fingerprints import size_settings
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD, PROMPTS_FIELD, heldout_config, heldout_prompts
from nullbooth_cli.settings.texts import quoted
from nullbooth_cli.store import RELEASED, Layout, Store, tasks_of
from nullbooth_cli.store.pieces import DAMAGE, require_whole

HELDOUT_STAGES = ("collect", "covariance")
# The groups of the store that each stage writes.
FOLDERS = {
    "schedule": ("schedule",),
    "collect": ("features", "parts", "attention", HELDOUT),
    "covariance": ("moments", "staged"),
    "project": ("projectors",),
}
DONE = ("complete", "released")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class StageState:
    """The progress of a stage; `units_total` is None until the stages before it determine it.

    `heldout` is the same stage of the held-out prompts, `attention` the attention maps of collect, where there are any.
    """

    stage: str
    state: str
    units_done: int
    units_total: int | None
    stale_because: tuple[Difference, ...] = ()
    heldout: "StageState | None" = None
    attention: "StageState | None" = None

    @property
    def only_lost_prompts(self) -> bool:
        """Whether removed or edited prompts are the only reason that it is stale."""
        return [because.field for because in self.stale_because] == [PROMPTS_FIELD]

    @property
    def is_done(self) -> bool:
        """Whether later stages can build on it."""
        return self.state in DONE


@dataclass(frozen=True, kw_only=True)
class States:
    """The states of all stages, in order.

    `own` are those of the preserved prompts, `heldout` those of the held-out prompts (empty without any). `stages` combines both,
    for users. `damaged` has the error of each damaged stage that was tolerated: it counts as missing if its state cannot be read.
    """

    own: Mapping[str, StageState]
    heldout: Mapping[str, StageState]
    stages: dict[str, StageState]
    damaged: Mapping[str, NullboothError] = field(default_factory=dict)


def stage_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None) -> dict[str, StageState]:
    """The state of every stage under a config, in order. Raises StoreError for damage. Cost: see above."""
    return read_states(config, prompts, store).stages


def read_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None, *, tolerate: Collection[str] = ()) -> States:
    """The states of all stages under a config, those of the held-out prompts included. Cost: see above.

    Raises StoreError for damage, except of the stages to `tolerate`.
    """
    damaged: dict[str, NullboothError] = {}
    guard = _Guard(tolerate, damaged)
    own = _own_states(config, prompts, store, guard)
    heldout: dict[str, StageState] = {}
    stages = dict(own)
    if config.heldout_prompts is not None:
        inner = guard.tolerating("collect", store.heldout) if store else None
        heldout = _own_states(heldout_config(config), heldout_prompts(config), inner, guard)
        stages |= {stage: _with_heldout(own[stage], heldout[stage]) for stage in HELDOUT_STAGES}
    if config.collect.visual_attention_map and stages["collect"].is_done:
        attention = guard.tolerating("collect", lambda: _attention_state(config, store, guard))
        stages["collect"] = replace(stages["collect"], attention=attention or _missing("attention"))
    return States(own=own, heldout=heldout, stages=stages, damaged=damaged)


@dataclass(frozen=True)
class _Guard:
    """Notes the damage of stages that may be damaged."""

    tolerate: Collection[str]
    damaged: dict[str, NullboothError]

    def tolerating(self, stage: str, read: Callable[[], Answer]) -> Answer | None:
        """The result of `read`, or None for damage of a stage that may be damaged."""
        try:
            return read()
        except DAMAGE as error:
            if stage not in self.tolerate:
                raise
            self.damaged.setdefault(stage, error)
            return None


def _missing(stage: str, units_total: int | None = None) -> StageState:
    return StageState(stage=stage, state="missing", units_done=0, units_total=units_total)


def _attention_state(config: Config, store: Store | None, guard: _Guard) -> StageState:
    if store is None or "attention" not in store.records:
        return _missing("attention")
    cells = store.progress.cells("attention")
    guard.tolerating("collect", lambda: require_whole(store, "attention", {"attention": cells}))
    done, total = int((cells > 0).sum()), len(cells)
    stale = store.records["attention"]["settings"] != attention_settings(config, store)
    state = "stale" if stale else "complete" if done == total else "partial"
    return StageState(stage="attention", state=state, units_done=done, units_total=total)


def _with_heldout(own: StageState, heldout: StageState) -> StageState:
    """A stage of the preserved prompts, together with that of the held-out ones."""
    if not own.is_done or heldout.is_done:
        return replace(own, heldout=heldout)
    because = tuple(
        replace(d, field=HELDOUT_FIELD if d.field == PROMPTS_FIELD else f"{d.field} ({HELDOUT_FIELD})")
        for d in heldout.stale_because
    )
    return replace(own, state="stale" if because else "partial", stale_because=because, heldout=heldout)


def _own_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None, guard: _Guard) -> dict[str, StageState]:
    """The states of one store, without those of the held-out prompts inside it."""
    found: dict[str, StageState] = {}
    records = store.records if store else {}
    for stage in STAGES:
        if store is None or stage not in records:
            total = {"schedule": 1, "collect": _units_of(config, prompts)}.get(stage)
            found[stage] = _missing(stage, total)
        else:
            state = guard.tolerating(stage, partial(_started_state, stage, config, prompts, store, found, guard))
            found[stage] = state or _missing(stage)
    return found


def _units_of(config: Config, prompts: tuple[Prompt, ...]) -> int:
    section = config.collect
    return Layout(section.keep, section.batch_size, section.feature_dtype).num_units(len(prompts))


def _started_state(
    stage: str,
    config: Config,
    prompts: tuple[Prompt, ...],
    store: Store,
    before: dict[str, StageState],
    guard: _Guard,
) -> StageState:
    records = store.records
    record = records[stage]
    keep = record["layout"]["keep"] if stage == "collect" else None
    differences = list(differing(record["settings"], wanted_settings(config, prompts, stage, keep)))
    if "size" in record:
        differences.extend(differing(record["size"], size_settings(config)))
    if keep == "moments" and config.collect.keep != "moments":
        differences.append(Difference("collect.keep", keep, config.collect.keep))
    for upstream, built_on in record["upstream"].items():
        now = records.get(upstream, {}).get("fingerprint")
        if before[upstream].state == "stale":
            differences.append(Difference(upstream, "complete", "stale"))
        elif now != built_on:
            differences.append(Difference(upstream, built_on, now or "missing"))
    units = _UNITS[stage](prompts, store, before)
    guard.tolerating(stage, lambda: require_whole(store, stage, units.cells))
    differences += units.differences
    state = "stale" if differences else "partial" if units.done < units.total else "released" if units.released else "complete"
    return StageState(stage=stage, state=state, units_done=units.done, units_total=units.total, stale_because=tuple(differences))


@dataclass(frozen=True, kw_only=True)
class _Units:
    """The units of a stage by its progress cells; `differences` are changes of the rows that it was made from."""

    done: int
    total: int
    cells: Mapping[str, NDArray[np.uint32]] = field(default_factory=dict)
    released: bool = False
    differences: tuple[Difference, ...] = ()


def _schedule_units(_: tuple[Prompt, ...], __: Store, ___: dict[str, StageState]) -> _Units:
    return _Units(done=1, total=1)


def _collect_units(prompts: tuple[Prompt, ...], store: Store, _: dict[str, StageState]) -> _Units:
    cells, layout = store.progress.cells("collect"), store.layout
    differences: tuple[Difference, ...] = ()
    if removed := removed_prompts(prompts, store):
        wanted = f"{len(prompts)} prompts; removed or edited: {listed([quoted(prompt.text) for prompt in removed], most=3)}"
        differences = (Difference(PROMPTS_FIELD, f"{len(store.prompts())} prompts", wanted),)
    return _Units(
        done=int((cells > 0).sum()),
        total=len(cells) + layout.num_units(len(added_prompts(prompts, store))),
        cells={"collect": cells},
        released=bool((cells == RELEASED).any()),
        differences=differences,
    )


def _covariance_units(_: tuple[Prompt, ...], store: Store, before: dict[str, StageState]) -> _Units:
    recorded, cells = store.records["covariance"]["rows"], store.progress.cells("covariance")
    if before["collect"].state == "missing":
        return _Units(done=0, total=len(cells), cells={"covariance": cells})
    count, digest = recorded["count"], covered_rows(store, recorded["count"])["digest"]
    differs = digest != recorded["digest"]
    because = (Difference(PROMPTS_FIELD, f"{count} rows, {recorded['digest']}", digest),) if differs else ()
    # A cell holds the number of collect's units that its sums were made from.
    done = int((cells == before["collect"].units_total).sum())
    return _Units(done=done, total=len(cells), cells={"covariance": cells}, differences=because)


def _project_units(_: tuple[Prompt, ...], store: Store, __: dict[str, StageState]) -> _Units:
    cells, records = store.progress.cells("project"), store.records
    old, new = records.get("decomposition", {}).get("rows"), records.get("covariance", {}).get("rows", {}).get("digest")
    because = (Difference(PROMPTS_FIELD, f"rows {old}", f"rows {new}"),) if old and new and old != new else ()
    for task in tasks_of(store):
        require_whole(task.store, "covariance", {})
    before, after = (found.get("tasks", {}) for found in (records.get("decomposition", {}), remembered_settings(store)))
    if before != after:
        because = (*because, Difference("tasks", ", ".join(before) or "none", ", ".join(after) or "none"))
    # A unit is cut after it was decomposed.
    known = {"project": cells, "decomposition": cells}
    return _Units(done=int((cells > 0).sum()), total=len(cells), cells=known, differences=because)


_UNITS: dict[str, Callable[[tuple[Prompt, ...], Store, dict[str, StageState]], _Units]] = {
    "schedule": _schedule_units,
    "collect": _collect_units,
    "covariance": _covariance_units,
    "project": _project_units,
}


def bytes_of(store: Store, stage: str) -> int:
    """Bytes on disk of all that a stage wrote."""
    return sum(store.nbytes(folder) for folder in FOLDERS[stage])


def require(states: Mapping[str, StageState], stage: str, store: str) -> None:
    """Raise StageError unless the stage is complete. The hint is the first stage that must run; `store` is named as the place."""
    found = states[stage]
    if found.is_done:
        return
    undone = [state for state in states.values() if not state.is_done]
    # Collect writes a schedule that is missing.
    first = found if stage == "collect" and undone[0].stage == "schedule" and undone[0].state == "missing" else undone[0]
    because = reasons_text(first) if first.state == "stale" else ": " + units_text(first) if first.state == "partial" else ""
    before = "" if first is found else f", and {first.stage} before it is {first.state}"
    raise StageError(
        f"{stage} in {store} is {found.state}{before}{because}",
        Rerun(first.stage, force=first.state == "stale", store=store),
    )


def reasons_text(state: StageState) -> str:
    """The reasons that a stage is stale, a line each; empty for one that is not."""
    return "".join(f"\n  {difference}" for difference in state.stale_because)


def units_text(state: StageState) -> str:
    """The number of finished units of a stage as text, with those of the held-out prompts."""
    text = f"{state.units_done} of {state.units_total} units"
    return f"{text}, held-out prompts {units_text(state.heldout)}" if state.heldout else text
