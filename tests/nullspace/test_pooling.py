"""Which timesteps a decomposition is made of, and the moments that they give."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Site, Step, Sums
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import Pooling, add_up, pooled, second_moment
from nullbooth_cli.settings.config import build_config
from tests.support.builders import project_again, set_moment

SITE = Site("mid", "q", "input", ("mid.to_q.weight",), False, 4, 3)
STEPS = tuple(Step(i, f"step_{i}", t, 1.0) for i, t in enumerate((900.0, 600.0, 400.0, 200.0, 10.0)))
FREE = Site("mid", "k", "input", ("mid.to_k.weight",), True, 4, 3)


def test_groups() -> None:
    assert Pooling().groups(SITE, STEPS) == [[0, 1, 2, 3, 4]]
    assert Pooling(timesteps=(200, 600)).groups(SITE, STEPS) == [[1, 2, 3]]
    assert Pooling("timestep").groups(SITE, STEPS) == [[0], [1], [2], [3], [4]]
    assert Pooling(timesteps=(200, 600)).groups(FREE, STEPS) == [[0]]
    assert Pooling("timestep").groups(FREE, STEPS) == [[0]]
    with pytest.raises(ConfigError, match=r"no timestep lies in project\.timesteps \[20, 100\]") as caught:
        Pooling(timesteps=(20, 100)).groups(SITE, STEPS)
    assert "900, 600, 400, 200, 10" in caught.value.hint


@pytest.mark.parametrize("weight", ["count", "timestep"])
def test_a_range_is_pooled_as_plain_numpy_pools_it(tiny: Any, weight: str) -> None:
    config, store = tiny
    steps = store.schedule()
    low, high = steps[2].timestep, steps[1].timestep
    for site in store.sites:  # one step with half of its vectors, so that the weights differ
        if not site.timestep_free:
            sum_xxt, sum_x, count = store.moments.read_one(site, 1)
            set_moment(store, site, 1, Sums(sum_xxt / 2, sum_x / 2, count // 2))
    project_again(config, store, timesteps=[low, high], pool_weight=weight)
    for site in store.sites:
        moments = [store.moments.read_one(site, t) for t in ([0] if site.timestep_free else [1, 2])]
        if weight == "count":
            expected = sum(m[0] for m in moments) / sum(m[2] for m in moments)
        else:
            expected = sum(m[0] / m[2] for m in moments) / len(moments)
        values = np.linalg.eigvalsh(expected)
        np.testing.assert_allclose(store.projectors.read_eigenvalues(site, 0), values, rtol=1e-8, atol=1e-12 * values[-1])
        sums = pooled(store, site, [0] if site.timestep_free else [1, 2], weight)
        assert sums[2] == sum(m[2] for m in moments)


@pytest.mark.parametrize("wrong", [{"scope": "timestep", "timesteps": [1.0, 2.0]}, {"timesteps": [5.0, 2.0]}])
def test_settings_that_contradict_each_other(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="project: time"):
        build_config({"project": wrong})


def test_not_quite_symmetric_is_made_so() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 7))
    moment = second_moment(Sums(x.T @ x + 1e-13 * rng.standard_normal((7, 7)), x.sum(0), 50))
    assert np.array_equal(moment, moment.T)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_added_sums_are_those_of_all_vectors(counts: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 10, (sum(counts), 3)).astype(float)
    parts = [Sums(part.T @ part, part.sum(0), len(part)) for part in np.split(x, np.cumsum(counts)[:-1])]
    added = add_up(parts)
    np.testing.assert_array_equal(added.sum_xxt, x.T @ x)
    np.testing.assert_array_equal(added.sum_x, x.sum(0))
    assert added.count == len(x)
    np.testing.assert_allclose(added.mean, x.mean(0), atol=1e-12)
