"""Small stores that are filled by hand, without a model: two sites, five prompts, two a unit, three timesteps, float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.store import Layout, Store, create_collection

FREE = Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "mid.attn2.to_v.weight"), True, 4, 6)
TIMED = Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 2, 3)
STEP_BYTES = 8 * 3 * 3  # of the moments of a timestep of TIMED, which are more than its features


def small_store(folder: Path) -> Store:
    made = Store.create(folder / "run.zarr", {"model": "toy"})
    start_collection(made, (FREE, TIMED), num_steps=3, num_rows=5)
    return made


def start_collection(
    store: Store, sites: tuple[Site, ...], *, num_steps: int, num_rows: int, dtype: str = "float32", **how: Any
) -> None:
    """Schedule, prompts and empty features. By default every timestep has a chunk of its own."""
    layout = Layout(**{"keep": "features", "batch_size": 2, "dtype": dtype, "chunk_bytes": STEP_BYTES} | how)
    create_collection(store, sites=sites, num_steps=num_steps, num_rows=num_rows, layout=layout)
    store.write_rows(0, [Prompt(f"prompt {row}") for row in range(num_rows)])
    store.write_record("collect", {"layout": vars(layout)})
    store.write_schedule(tuple(Step(t, f"step_{t}", 999.0 - t, 1.0) for t in range(num_steps)))


def write_features(store: Store, unit: int, site: Site = TIMED, step: int = 0) -> NDArray[np.float32]:
    """Write `[b, L, D]` random numbers as the features of a unit at one timestep; the last unit has one prompt."""
    count = 1 if unit == 2 else 2
    values = np.random.default_rng(unit).standard_normal((count, site.num_tokens, site.dim)).astype(np.float32)
    store.features.write(site, range(step, step + 1), [2 * unit + i for i in range(count)], values[None])
    return values


def as_format(store: Path, version: int) -> None:
    """Make the metadata of a store those of another format version, whose stores have no seal."""
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["format_version"] = version
    del document["attributes"]["seal"]
    (store / "zarr.json").write_text(json.dumps(document))
