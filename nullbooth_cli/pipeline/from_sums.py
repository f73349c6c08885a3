"""Stores that are made from sums computed elsewhere, by merging stores or importing files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.errors import StoreError
from nullbooth_cli.pipeline.run import Run, start_stage
from nullbooth_cli.pipeline.stages import execute
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Layout, Store, create_collection


@dataclass(frozen=True, kw_only=True)
class SummedCollection:
    """A collection of which only sums exist.

    `name` is that of its partial sums in the store, `rows` its prompts by row, `sums` the packed sums of every recorded timestep
    of each site. `schedule` and `weights` go into the fingerprints; `names` (the model's), `tensors` (digests of its weights)
    and `samples` (a few values of each) do not; the last two are None if unknown.
    """

    name: str
    steps: tuple[Step, ...]
    sites: tuple[Site, ...]
    rows: Sequence[Prompt | None]
    layout: Layout
    sums: Iterable[tuple[Site, list[NDArray[np.float64]]]]
    schedule: Mapping[str, Any]
    weights: str
    names: Mapping[str, Any]
    tensors: Mapping[str, str] | None = None
    samples: Mapping[str, Sequence[float]] | None = None


def require_new(store: Store) -> None:
    """Raise StoreError if a store has a collection already."""
    if "collect" in store.records:
        raise StoreError(f"{store.url} has a collection already", "name another place; nothing was changed")


def summed_config(config: Config, store: Store, prompts: Sequence[Prompt]) -> Config:
    """The config of a store made out of the sums of these prompts: no features, and no held-out prompts."""
    return config.model_copy(
        update={
            "store": store.url,
            "original_knowledge_prompts": [prompt.text for prompt in prompts],
            "heldout_prompts": None,
            "collect": config.collect.model_copy(update={"keep": "moments"}),
        }
    )


def fill_store(store: Store, config: Config, given: SummedCollection) -> Iterator[Event]:
    """Write a collection into a new store, as if it had been collected with `keep: moments`, and make its moments complete."""
    prompts = tuple(prompt for prompt in given.rows if prompt is not None)
    run = Run(config=config, prompts=prompts, store=store)
    store.write_schedule(given.steps)
    start_stage(run, "schedule", dict(given.schedule))
    create_collection(store, sites=given.sites, num_steps=len(given.steps), num_rows=len(given.rows), layout=given.layout)
    store.write_rows(0, given.rows)
    part, units = store.moments.partial_sums(given.name), range(given.layout.num_units(len(given.rows)))
    part.create(given.sites, len(given.steps), config.covariance.factoring())
    part.checkpoint(given.sums, units)
    store.progress.commit("collect", units)
    known = {"tensors": given.tensors, "samples": given.samples, "model": given.names}
    notes = {name: dict(values) for name, values in known.items() if values is not None}
    start_stage(run, "collect", {"weights": given.weights}, layout=vars(given.layout), **notes)
    yield from execute("covariance", run)
