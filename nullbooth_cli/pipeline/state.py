"""The state of every stage under a config, read from the records that the stages leave in the store.

A stage leaves a record in the store: its settings, the fingerprints of the stages it was built on, and its own. A stage is

- missing   if it has no record,
- stale     if its settings or one of its inputs are not what the config asks for now,
- partial   if some of its units are not done (prompts that were added make new ones),
- released  if all were done and the features were then removed on request,
- complete  otherwise.

The held-out prompts have a store of their own inside the store. Collect and covariance are done when those of both are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nullbooth_cli.datatypes import HELDOUT, Prompt
from nullbooth_cli.errors import StageError
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.settings.fingerprints import fingerprint, size_settings, stage_settings
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD, PROMPTS_FIELD, attention_prompts, heldout_config, heldout_prompts
from nullbooth_cli.store import RELEASED, Store

HELDOUT_STAGES = ("collect", "covariance")
# Where in the store each stage writes.
FOLDERS = {
    "schedule": ("schedule",),
    "collect": ("features", "parts", "attention", HELDOUT),
    "covariance": ("moments", "staged"),
    "project": ("projectors",),
}
DONE = ("complete", "released")


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
    heldout: "StageState | None" = None
    attention: "StageState | None" = None

    @property
    def only_lost_prompts(self) -> bool:
        """Whether it is stale for nothing but prompts that were removed or edited."""
        return [because.field for because in self.stale_because] == [PROMPTS_FIELD]

    @property
    def is_done(self) -> bool:
        """Whether later stages can build on it."""
        return self.state in DONE


def wanted_settings(config: Config, prompts: Iterable[Prompt], stage: str, keep: str | None = None) -> dict[str, Any]:
    settings = stage_settings(config, stage, keep)
    if stage == "project":
        ids = sorted(prompt.id for prompt in prompts)
        settings[PROMPTS_FIELD] = f"{len(ids)} prompts, {fingerprint(ids)}"
        ids = sorted(prompt.id for prompt in heldout_prompts(config))
        settings[HELDOUT_FIELD] = f"{len(ids)} prompts, {fingerprint(ids)}" if ids else None
    return settings


def attention_settings(config: Config, store: Store) -> dict[str, Any]:
    """What the attention maps of a store depend on."""
    section, num_steps = config.collect, store.num_steps
    count = min(section.attention_timesteps, num_steps)
    return {
        "collect": store.records["collect"]["fingerprint"],
        "prompts": [prompt.id for prompt in attention_prompts(config, store.prompts())],
        "layers": section.attention_layers,
        "steps": sorted({round(i * (num_steps - 1) / max(count - 1, 1)) for i in range(count)}),
    }


def _attention_state(config: Config, store: Store | None) -> StageState:
    if store is None or "attention" not in store.records:
        return StageState("attention", "missing", 0, None)
    cells = store.progress.cells("attention")
    done, total = int((cells > 0).sum()), len(cells)
    if store.records["attention"]["settings"] != attention_settings(config, store):
        return StageState("attention", "stale", done, total)
    return StageState("attention", "complete" if done == total else "partial", done, total)


def covered_rows(store: Store) -> dict[str, Any]:
    """What covariance notes of the rows it was made from: they must stay as they are, others may come."""
    rows = store.rows
    return {"count": len(rows), "digest": _digest(rows)}


def _digest(rows: Iterable[Prompt | None]) -> str:
    return fingerprint([row.id if row else "" for row in rows])


def bytes_of(store: Store, stage: str) -> int:
    return sum(store.nbytes(folder) for folder in FOLDERS[stage])


def removed_prompts(prompts: Iterable[Prompt], store: Store) -> list[Prompt]:
    """The collected prompts that are not wanted any more."""
    wanted = set(prompts)
    return [prompt for prompt in store.prompts() if prompt not in wanted]


def added_prompts(prompts: Iterable[Prompt], store: Store) -> list[Prompt]:
    """The wanted prompts that are not in the store."""
    there = set(store.prompts())
    return [prompt for prompt in prompts if prompt not in there]


def stage_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None) -> dict[str, StageState]:
    """The state of every stage under a config, in order; collect and covariance with what is held out, collect with its maps."""
    found = own_states(config, prompts, store)
    if config.heldout_prompts is not None:
        inner = own_states(heldout_config(config), heldout_prompts(config), store and store.heldout())
        found |= {stage: _with_heldout(found[stage], inner[stage]) for stage in HELDOUT_STAGES}
    if config.collect.visual_attention_map and found["collect"].is_done:
        found["collect"] = replace(found["collect"], attention=_attention_state(config, store))
    return found


def _with_heldout(own: StageState, heldout: StageState) -> StageState:
    if not own.is_done or heldout.is_done:
        return replace(own, heldout=heldout)
    because = tuple(
        replace(d, field=HELDOUT_FIELD if d.field == PROMPTS_FIELD else f"{d.field} ({HELDOUT_FIELD})")
        for d in heldout.stale_because
    )
    return replace(own, state="stale" if because else "partial", stale_because=because, heldout=heldout)


def own_states(config: Config, prompts: tuple[Prompt, ...], store: Store | None) -> dict[str, StageState]:
    """The same, without what is held out."""
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
    keep = record["layout"]["keep"] if stage == "collect" else None
    differences = [*_differences(record["settings"], wanted_settings(config, prompts, stage, keep))]
    if "size" in record:
        differences.extend(_differences(record["size"], size_settings(config)))
    if keep == "moments" and config.collect.keep != "moments":
        differences.append(Difference("collect.keep", keep, config.collect.keep))
    for upstream, built_on in record["upstream"].items():
        now = records.get(upstream, {}).get("fingerprint")
        if before[upstream].state == "stale":
            differences.append(Difference(upstream, "as it was", "stale"))
        elif now != built_on:
            differences.append(Difference(upstream, built_on, now or "missing"))
    done, total, released = 1, 1, False
    if stage == "collect":
        cells = store.progress.cells(stage)
        added = added_prompts(prompts, store)
        if removed := removed_prompts(prompts, store):
            reasons_text = ", ".join(f"'{prompt.text}'" for prompt in removed)
            wanted = f"{len(prompts)} prompts; removed or edited: {reasons_text}"
            differences.append(Difference(PROMPTS_FIELD, f"{len(store.prompts())} prompts", wanted))
        done, total = int((cells > 0).sum()), len(cells) + -(-len(added) // record["layout"]["batch_size"])
        released = bool((cells == RELEASED).any())
    elif stage == "covariance":
        cells, count = store.progress.cells(stage), record["rows"]["count"]
        if _digest(store.rows[:count]) != record["rows"]["digest"]:
            differences.append(
                Difference(PROMPTS_FIELD, f"{count} rows, {record['rows']['digest']}", _digest(store.rows[:count]))
            )
        done, total = int((cells == before["collect"].units_total).sum()), len(cells)
    elif stage == "project":
        done, total = int(store.progress.done(stage).sum()), len(store.progress.done(stage))
    state = "stale" if differences else "partial" if done < total else "released" if released else "complete"
    return StageState(stage, state, done, total, tuple(differences))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name, "not set"), new.get(name, "not set"))


def require(run_states: dict[str, StageState], stage: str, store: str) -> None:
    """Raise StageError unless the stage is complete."""
    found = run_states[stage]
    if found.is_done:
        return
    if found.state == "stale":
        reasons = reasons_text(found)
        raise StageError(f"{stage} in {store} is stale{reasons}", f"run nullbooth {stage} --force first, with the same options")
    units = ": " + units_text(found) if found.state == "partial" else ""
    raise StageError(f"{stage} in {store} is {found.state}{units}", f"run nullbooth {stage} first, with the same options")


def reasons_text(state: StageState) -> str:
    return "".join(f"\n  {difference}" for difference in state.stale_because)


def units_text(state: StageState) -> str:
    text = f"{state.units_done} of {state.units_total} units"
    return f"{text}, held-out prompts {units_text(state.heldout)}" if state.heldout else text
