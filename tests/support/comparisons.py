"""Two stores that must agree: the same prompts and counts, and the same numbers within rounding."""

import numpy as np

from nullbooth_cli.store import Store
from tests.support.builders import features_at


def assert_same_run(found: Store, expected: Store, *, exactly: bool = False) -> None:
    """Prompts and counts are the same; so are features and moments, within the rounding of other batches and threads."""
    assert not list(found.path.rglob("*.partial"))
    assert found.sites == expected.sites
    assert found.rows == expected.rows
    assert (found.progress.done("collect").all(), found.progress.done("covariance").all()) == (True, True)
    for site in found.sites:
        for step in range(site.num_recorded(len(found.schedule()))):
            sums = expected.moments.read_one(site, step)
            if found.layout.keeps_features:
                chunks = [u for u in range(len(found.progress.cells("collect"))) if found.members(u)]
                x, wanted = (
                    np.concatenate([features_at(store, site, step, unit).reshape(-1, site.dim) for unit in chunks])
                    for store in (found, expected)
                )
                # Prompts of a unit that grew were recorded in two batches: float32 products of another size round otherwise.
                np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=3e-5 * np.abs(wanted).max())
                vectors = x.astype(np.float64)
                _assert_sums(found.moments.read_one(site, step), (vectors.T @ vectors, vectors.sum(0), len(vectors)), 1e-9)
            _assert_sums(found.moments.read_one(site, step), sums, 0.0 if exactly else 1e-4)


def _assert_sums(found: tuple, expected: tuple, relative: float) -> None:
    assert found[2] == expected[2]
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())
