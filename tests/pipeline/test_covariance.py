"""Stage covariance: each unit once, in any number of runs, and the plain sums of the stored features."""

from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import Rerun, StageError
from nullbooth_cli.pipeline.collect import release_features
from nullbooth_cli.progress import Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, features_at, small_config
from tests.support.stages import TINY, events

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture
def collected(tmp_path: Path, one_chunk_a_timestep: None) -> tuple[Config, Store]:
    config = small_config(tmp_path / "run.zarr", **TINY, original_knowledge_prompts=PROMPTS[:3])
    return config, execute(config, "collect")


def reported(config: Config, store: Store, limit: int | None = None) -> list[tuple[int, int, str]]:
    """(units that are done, of how many, the unit) of every report of a run."""
    found = [event for event in events(config, store, "covariance", limit=limit) if isinstance(event, Progress)]
    return [(event.done, event.total, event.what) for event in found]


def test_runs_with_a_limit_do_each_unit_once(collected: tuple[Config, Store]) -> None:
    config, store = collected
    keys = [step.key for step in store.schedule()]
    units = [f"{site.name} {key}" for site in store.sites for key in (keys[:1] if site.timestep_free else keys)]
    first = reported(config, store, limit=2)
    assert store.progress.done("covariance").sum() == 2
    rest = reported(config, store)
    assert sorted(what for _, _, what in (*first, *rest)) == sorted(units)
    assert [done for done, _, _ in (*first, *rest)] == list(range(1, len(units) + 1))
    assert {total for _, total, _ in rest} == {len(units)}


def test_moments_are_numpys(collected: tuple[Config, Store]) -> None:
    config, store = collected
    reported(config, store)
    for site in store.sites:
        for t in range(site.num_recorded(4)):
            x = np.concatenate([features_at(store, site, t, unit) for unit in (0, 1)]).reshape(-1, site.dim).astype(np.float64)
            sum_xxt, sum_x, count = store.moments.read_one(site, t)
            assert count == len(x) == 3 * site.num_tokens
            np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=1e-9, atol=1e-9 * np.abs(x.T @ x).max())
            np.testing.assert_allclose(sum_x, x.sum(0), rtol=1e-7, atol=1e-9 * np.abs(x).sum())


def test_a_unit_is_named_by_its_first_and_last_step(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY, original_knowledge_prompts=PROMPTS[:2])
    store = execute(config, "collect")
    keys = [step.key for step in store.schedule()]
    timed = [what for _, _, what in reported(config, store) if ".q " in what]
    assert timed == [f"mid_block.attentions.0.transformer_blocks.0.attn2.q {keys[0]} to {keys[-1]}"]


def test_released_features_cannot_be_summed_up_again(collected: tuple[Config, Store]) -> None:
    config, store = collected
    reported(config, store)
    release_features(store)
    with pytest.raises(StageError, match="were released, and moments cannot be computed without them") as caught:
        events(config, store, "covariance", force=True)
    assert caught.value.rerun == Rerun("collect", force=True, otherwise=" to collect them again")
