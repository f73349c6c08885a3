"""The differences between the settings and prompts that a stage was made from and those that the config asks for now."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import fingerprint, model_names, stage_settings
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD, PROMPTS_FIELD, attention_prompts, heldout_prompts
from nullbooth_cli.settings.texts import cut
from nullbooth_cli.store import Store, tasks_of


@dataclass(frozen=True)
class Difference:
    """A reason that a stage is stale: a field, its value when the stage was made, and its value now."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {cut(str(self.old), 400)} -> {cut(str(self.new), 400)}"


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """The settings that are not the same in both; one that is missing is `not set`."""
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name, "not set"), new.get(name, "not set"))


def wanted_settings(config: Config, prompts: Iterable[Prompt], stage: str, keep: str | None = None) -> dict[str, Any]:
    """The settings in the record of a stage under a config; `keep` is that of the collection, None for the config's."""
    settings = stage_settings(config, stage, keep)
    if stage == "project":
        ids = sorted(prompt.id for prompt in prompts)
        settings[PROMPTS_FIELD] = f"{len(ids)} prompts, {fingerprint(ids)}"
        ids = sorted(prompt.id for prompt in heldout_prompts(config))
        settings[HELDOUT_FIELD] = f"{len(ids)} prompts, {fingerprint(ids)}" if ids else None
    return settings


def remembered_settings(store: Store) -> dict[str, Any]:
    """The hard tasks that the decompositions of a store depend on, a digest of each by its name; nothing without any.

    Their order is part of the digests: what each took is known for this order alone.
    """
    digests = {
        task.name: fingerprint([place, task.weight, *(task.store.records["covariance"][key] for key in ("fingerprint", "rows"))])
        for place, task in enumerate(tasks_of(store, "hard"))
    }
    return {"tasks": digests} if digests else {}


def attention_settings(config: Config, store: Store) -> dict[str, Any]:
    """The settings that the attention maps of a store depend on."""
    section, num_steps = config.collect, store.num_steps
    count = min(section.attention_timesteps, num_steps)
    return {
        "collect": store.records["collect"]["fingerprint"],
        "prompts": [prompt.id for prompt in attention_prompts(config, store.prompts())],
        "layers": section.attention_layers,
        "steps": sorted({round(i * (num_steps - 1) / max(count - 1, 1)) for i in range(count)}),
    }


def model_renamed(config: Config, store: Store | None) -> tuple[Difference, ...]:
    """The names of the model that have changed since it was collected from. Only its weights show whether it is another model."""
    record = store.records.get("collect") if store else None
    if record is None:
        return ()
    old, new = record["model"], model_names(config)
    return tuple(Difference(name, old[name], new[name]) for name in new if old[name] != new[name])


def covered_rows(store: Store, count: int | None = None) -> dict[str, Any]:
    """The number and the digest of the first `count` rows (all by default), which moments are made from.

    Covariance notes them: the units of those rows must stay as they are, and others may be added. A unit that is not full counts
    with its empty rows: they stay empty, because added prompts get units of their own.
    """
    batch, count = store.layout.batch_size, len(store.rows) if count is None else count
    end = -(-count // batch) * batch
    ids = [row.id if row else "" for row in store.rows[:end]]
    return {"count": count, "digest": fingerprint([batch, *ids, *[""] * (end - len(ids))])}


def removed_prompts(prompts: Iterable[Prompt], store: Store) -> list[Prompt]:
    """The collected prompts that the config no longer names."""
    wanted = set(prompts)
    return [prompt for prompt in store.prompts() if prompt not in wanted]


def added_prompts(prompts: Iterable[Prompt], store: Store) -> list[Prompt]:
    """The wanted prompts that are not in the store."""
    there = set(store.prompts())
    return [prompt for prompt in prompts if prompt not in there]
