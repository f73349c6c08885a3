"""The state of every stage under a config, read from the records that the stages leave in the store.

A stage leaves a record in the store: its settings, the fingerprints of the stages it was built on, and its own. A stage is

- missing   if it has no record,
- stale     if its settings or one of its inputs are not what the config asks for now,
- partial   if some of its units are not done,
- complete  otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.config import STAGES, Config, fingerprint, stage_settings
from nullbooth_cli.errors import StageError
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.store import Store

PROMPTS_FIELD = "original_knowledge_prompts"
# Where in the store each stage writes.
FOLDERS = {"schedule": "schedule", "collect": "features", "covariance": "moments", "project": "projectors"}


@dataclass(frozen=True)
class Difference:
    """Why a stage is stale: what it was built with, and what is asked for now."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class StageState:
    stage: str
    state: str
    units_done: int
    units_total: int | None
    stale_because: tuple[Difference, ...] = ()


def wanted_settings(config: Config, prompts: tuple[Prompt, ...], stage: str) -> dict[str, Any]:
    settings = stage_settings(config, stage)
    if stage == "collect":
        settings[PROMPTS_FIELD] = f"{len(prompts)} prompts, {fingerprint([prompt.id for prompt in prompts])}"
    return settings


def stage_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None) -> dict[str, StageState]:
    """The state of every stage under a config, in order."""
    found: dict[str, StageState] = {}
    records = store.records if store else {}
    for stage in STAGES:
        found[stage] = _state(stage, config, prompts, store, records, found)
    return found


def _state(
    stage: str,
    config: Config,
    prompts: tuple[Prompt, ...],
    store: Store | None,
    records: dict[str, dict[str, Any]],
    before: dict[str, StageState],
) -> StageState:
    record = records.get(stage)
    if record is None or store is None:
        total = 1 if stage == "schedule" else -(-len(prompts) // config.collect.batch_size) if stage == "collect" else None
        return StageState(stage, "missing", 0, total)
    differences = [*_differences(record["settings"], wanted_settings(config, prompts, stage))]
    for upstream, built_on in record["upstream"].items():
        now = records.get(upstream, {}).get("fingerprint")
        if before[upstream].state == "stale":
            differences.append(Difference(upstream, "as it was", "stale"))
        elif now != built_on:
            differences.append(Difference(upstream, built_on, now or "missing"))
    progress = store.progress(stage) if stage != "schedule" else [True]
    done, total = int(sum(progress)), len(progress)
    state = "stale" if differences else "complete" if done == total else "partial"
    return StageState(stage, state, done, total, tuple(differences))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name, "not set"), new.get(name, "not set"))


def require(run_states: dict[str, StageState], stage: str, store: Path) -> None:
    """Raise StageError unless the stage is complete."""
    found = run_states[stage]
    if found.state == "complete":
        return
    if found.state == "stale":
        reasons = listed(found)
        raise StageError(f"{stage} in {store} is stale{reasons}", f"run nullbooth {stage} --force first, with the same options")
    units = f": {found.units_done} of {found.units_total} units" if found.state == "partial" else ""
    raise StageError(f"{stage} in {store} is {found.state}{units}", f"run nullbooth {stage} first, with the same options")


def listed(state: StageState) -> str:
    return "".join(f"\n  {difference}" for difference in state.stale_because)
