"""A store made out of sums: its moments are those sums, and later stages take it as collected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt, Site, Step, Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.pipeline.from_sums import SummedCollection, fill_store, require_new, summed_config
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Layout, Store, pack_sums
from tests.support.builders import small_config, states_of

SITE = Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 2, 3)
STEPS = tuple(Step(i, f"timestep_{999 - i:04d}", 999.0 - i, 1.0) for i in range(2))
ROWS = [Prompt("a"), None, Prompt("b")]


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Config, Store, list[Sums]]:
    vectors = np.random.default_rng(0).standard_normal((2, 5, 3))
    sums = [Sums(x.T @ x, x.sum(axis=0), len(x)) for x in vectors]
    config = small_config(tmp_path / "run.zarr", heldout_prompts=["c"])
    store = Store.create(config.store, {})
    config = summed_config(config, store, [prompt for prompt in ROWS if prompt])
    given = SummedCollection(
        name="summed",
        steps=STEPS,
        sites=(SITE,),
        rows=ROWS,
        layout=Layout(keep="moments", batch_size=2, dtype="float32"),
        sums=[(SITE, [pack_sums(each) for each in sums])],
        schedule={"scheduler": "none", "noise": "none", "values": [step.timestep for step in STEPS]},
        weights="0123",
        names={"model": config.model, "revision": None, "variant": None},
    )
    for _ in fill_store(store, config, given):
        pass
    return config, store, sums


def test_its_moments_are_the_sums(filled: Any) -> None:
    config, store, sums = filled
    assert {stage: state for stage, state in states_of(config).items() if stage != "project"} == dict.fromkeys(
        ("schedule", "collect", "covariance"), "complete"
    )
    for t, expected in enumerate(sums):
        found = store.moments.read_one(SITE, t)
        np.testing.assert_allclose(found.sum_xxt, expected.sum_xxt, rtol=1e-12)
        np.testing.assert_allclose(found.sum_x, expected.sum_x, rtol=1e-12)
        assert found.count == expected.count
    assert [prompt and prompt.text for prompt in store.rows] == ["a", None, "b"]
    assert "tensors" not in store.records["collect"]


def test_a_store_that_holds_a_collection_is_left_alone(filled: Any) -> None:
    with pytest.raises(StoreError, match="has a collection already"):
        require_new(filled[1])
