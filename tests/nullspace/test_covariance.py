"""Stage covariance against plain numpy on the stored features."""

import numpy as np
import pytest

from nullbooth_cli.nullspace.pooling import pooled
from nullbooth_cli.tensors import unpack
from tests.support.builders import execute, features_at, small_config
from tests.support.invariants import assert_close


def test_moments_are_numpys(finished) -> None:
    _, store = finished
    units = len(store.progress.done("collect"))
    dtype = store.layout.dtype
    for site in store.sites:
        for t in range(1 if site.timestep_free else 4):
            x = np.concatenate([unpack(features_at(store, site, t, u), dtype).numpy() for u in range(units)])
            x = x.reshape(-1, site.dim).astype(np.float64)
            sum_xxt, sum_x, count = store.moments.read_one(site, t)
            assert count == len(x) == 8 * site.num_tokens
            assert_close(sum_xxt, x.T @ x)
            assert_close(sum_x, x.sum(0), 1e-9)


def test_another_batch_size_gives_the_same_moments(finished, tmp_path) -> None:
    _, store = finished
    other = execute(small_config(tmp_path / "other.zarr", collect__batch_size=8), "collect", "covariance")
    for site in store.sites:
        mine, theirs = (pooled(s, site, range(site.num_recorded(4))) for s in (store, other))
        assert_close(theirs[0], mine[0], 1e-4)
        assert theirs[2] == mine[2]


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_moments_folded_on_the_way_are_those_of_the_features(finished, tmp_path, accumulate: str) -> None:
    """keep: moments and keep: both give what covariance makes of float32 features, for any batch."""
    _, store = finished
    for keep, batch in (("moments", 3), ("both", 8)):
        changes = {"collect__keep": keep, "collect__batch_size": batch, "covariance__accumulate": accumulate}
        folded = execute(small_config(tmp_path / f"{keep}.zarr", **changes), "collect")
        assert (folded.path / "features").exists() == (keep == "both")
        for site, twin in zip(store.sites, folded.sites, strict=True):
            for t in range(site.num_recorded(4)):
                mine, theirs = store.moments.read_one(site, t), folded.moments.read_one(twin, t)
                assert_close(theirs[0], mine[0], 1e-12 if batch == 3 and accumulate == "float64" else 1e-4)
                assert theirs[2] == mine[2]
