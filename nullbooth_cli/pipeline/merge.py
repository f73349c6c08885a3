"""The moments of stores that were collected apart, added up in one new store."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import AnySums, Prompt, Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import add_up
from nullbooth_cli.pipeline.from_sums import SummedCollection, fill_store, require_new, summed_config
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.store import Layout, Store, listed_tasks, pack_sums

PART = "merged"


def check_mergeable(sources: Sequence[Store]) -> None:
    """Raise StageError for moments that are incomplete, ConfigError for tasks, or stores that do not agree or share a prompt."""
    for source in sources:
        if tasks := [entry.name for entry in listed_tasks(source)]:
            raise ConfigError(
                f"{source.url} remembers {', '.join(tasks)}, recorded on models that followed it alone",
                "forget them, and remember them again in the merged store",
            )
        require(stage_states(build_config(source.config), source.prompts(), source), "covariance", source.url)
    first = sources[0]
    differences, seen = [], dict.fromkeys(first.prompts(), first.url)
    for other in sources[1:]:
        differences += [
            f"\n  {field}: {old} in {first.url}, {new} in {other.url}" for field, old, new in _differences(first, other)
        ]
        twice = [prompt for prompt in other.prompts() if prompt in seen]
        if twice:
            raise ConfigError(
                f"{len(twice)} prompts are in {seen[twice[0]]} and in {other.url}, such as '{twice[0].text}'",
                "collect each prompt into one of the stores only: it may count once",
            )
        seen |= dict.fromkeys(other.prompts(), other.url)
    if differences:
        raise ConfigError(f"the stores do not agree{''.join(differences)}", "merge stores of one model, schedule and settings")


def _differences(one: Store, other: Store) -> Iterator[tuple[str, object, object]]:
    for name, values in (
        ("schedule", [fingerprint([(step.timestep, step.sigma) for step in store.schedule()]) for store in (one, other)]),
        ("model weights", [store.records["collect"]["weights"] for store in (one, other)]),
        ("layers and sharing", [fingerprint([site.name for site in store.sites]) for store in (one, other)]),
    ):
        if values[0] != values[1]:
            yield name, *values
    settings = [
        {"covariance.factor_above": None, **store.records["collect"]["settings"], **store.records["covariance"]["settings"]}
        for store in (one, other)
    ]
    for field in dict.fromkeys([*settings[0], *settings[1]]):
        # A store without features has no precision for them.
        if field in settings[0] and field in settings[1] and settings[0][field] != settings[1][field]:
            yield field, settings[0][field], settings[1][field]


def merge(sources: Sequence[Store], out: Store) -> Iterator[Event]:
    """Add the moments of the sources into a new store, which then counts as collected with `keep: moments`.

    Raises every error of `check_mergeable`, and StoreError if the new store has a collection already. A prompt keeps the noise
    that it was collected with. Cost: one read of all moments.
    """
    check_mergeable(sources)
    require_new(out)
    first = sources[0]
    batch_size = max(source.layout.batch_size for source in sources)
    rows: list[Prompt | None] = []
    for source in sources:
        rows += [None] * (-len(rows) % batch_size) + list(source.rows)
    prompts = [prompt for prompt in rows if prompt is not None]
    schedule, collected = first.records["schedule"], first.records["collect"]
    summed = SummedCollection(
        name=PART,
        steps=first.schedule(),
        sites=first.sites,
        rows=rows,
        layout=Layout(keep="moments", batch_size=batch_size, dtype=first.layout.dtype),
        sums=_added_sums(sources),
        schedule={name: schedule[name] for name in ("scheduler", "noise", "values")},
        weights=collected["weights"],
        names=collected["model"],
        tensors=collected.get("tensors", {}),
        samples=collected.get("samples", {}),
    )
    yield from fill_store(out, summed_config(build_config(first.config), out, prompts), summed)


def _added_sums(sources: Sequence[Store]) -> Iterator[tuple[Site, list[NDArray[np.float64]]]]:
    """The sums of every site over all sources, packed, one for each timestep."""
    for number, site in enumerate(sources[0].sites):
        yield site, [pack_sums(add_up(of_step)) for of_step in zip(*_moments(sources, number), strict=True)]


def _moments(sources: Sequence[Store], number: int) -> Iterator[Iterator[AnySums]]:
    """The sums of every timestep of a site, by its number, from each source."""
    for source in sources:
        site = source.sites[number]
        yield source.moments.read(site, range(site.num_recorded(source.num_steps)))
