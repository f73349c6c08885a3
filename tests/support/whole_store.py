"""A store with something in each of its arrays, filled by hand with whole numbers (or halves): sums of them are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullbooth_cli.collect.sinks import MomentSink
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.nullspace.covariance import CovarianceUnit, covariance
from nullbooth_cli.store import AttentionMaps, Cut, Decomposition, Layout, Store, create_collection
from nullbooth_cli.store.layout import covariance_units

STEPS = tuple(Step(i, f"timestep_{t:04d}", float(t), t / 2) for i, t in enumerate((999, 500, 1)))
SITES = (
    Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 4, 3),
    Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "mid.attn2.to_v.weight"), True, 2, 5),
    Site("up.attn2", "k", "input", ("up.attn2.to_k.weight",), True, 3, 2, masked=True),
)
PROMPTS = [Prompt(f"prompt {i}") for i in range(4)] + [Prompt("a caption", "0123456789abcdef")]
DTYPES = {"float16": np.float16, "float32": np.float32}


def whole_numbers(*shape: int) -> Any:
    return (np.arange(int(np.prod(shape))) % 7 - 3).reshape(shape).astype(np.float32)


def whole_store(path: Path, keep: str, dtype: str) -> Store:
    """A store with something in each of its arrays."""
    store = Store.create(path, {"keep": keep})
    store.write_schedule(STEPS)
    layout = Layout(keep, 2, dtype, chunk_bytes=400)
    create_collection(store, sites=SITES, num_steps=len(STEPS), num_rows=len(PROMPTS), layout=layout)
    store.write_rows(0, PROMPTS)
    store.write_record("collect", {"layout": vars(layout), "settings": {}, "upstream": {}, "fingerprint": "0"})
    sink = None
    if layout.keeps_moments:
        part = store.moments.partial_sums("1-of-1.0")
        part.create(SITES, len(STEPS))
        sink = MomentSink(part, SITES, len(STEPS), device=torch.device("cpu"), accumulate="float64")
    for unit in range(layout.num_units(len(PROMPTS))):
        rows = [row for row, _ in store.members(unit)]
        for site in SITES:
            for block in store.blocks(site):
                values = whole_numbers(len(block), len(rows), site.num_tokens, site.dim) + unit
                if site.masked:
                    values[:, :, -1] = np.nan  # padding
                if layout.keeps_features:
                    store.features.write(site, block, rows, values.astype(DTYPES[dtype]))
                for i, step in enumerate(block if sink else ()):
                    assert sink is not None
                    sink.receive(site, step, rows, torch.from_numpy(values[i]))
    if sink:
        sink.checkpoint(range(layout.num_units(len(PROMPTS))))
    store.progress.commit("collect", range(layout.num_units(len(PROMPTS))))
    store.moments.create(SITES, len(STEPS), layout)
    units = [CovarianceUnit(i, *unit) for i, unit in enumerate(covariance_units(SITES, len(STEPS), layout))]
    for _ in covariance(store, torch.device("cpu"), "float64", units):
        pass
    store.projectors.create(SITES, {site.name: 1 for site in SITES})
    for number, site in enumerate(SITES):
        eigenvalues = np.arange(site.dim) / 4
        energies = np.stack([eigenvalues, eigenvalues * 2])
        store.projectors.write_decomposition(site, 0, Decomposition(eigenvalues, np.eye(site.dim), energies, 2.0**-40))
        store.progress.commit("decomposition", number)
        store.projectors.write_cut(site, 0, Cut(1, 0.25, None))
    layers = {"mid.attn2": whole_numbers(2, 3, 3, 2).astype(np.float16)}
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    store.attention.write(PROMPTS[0], AttentionMaps(("a", "b"), (0, 2), layers, image))
    return store
