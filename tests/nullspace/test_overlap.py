"""Measures of projectors against plain numpy: overlap, chance, leakage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.nullspace.projector import Projector, expected_overlap, leakage_on, overlap


def basis(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


@given(st.integers(2, 12), st.data())
def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(dim: int, data: st.DataObject) -> None:
    k, m = (data.draw(st.integers(1, dim)) for _ in range(2))
    one, two = basis(dim, 0), basis(dim, 1)
    cosines = np.linalg.svd(one[:, :k].T @ two[:, :m], compute_uv=False)
    projectors = Projector.of(one, k), Projector.of(two, m)
    assert overlap(*projectors) == pytest.approx((cosines**2).mean(), abs=1e-10)
    assert overlap(*projectors) == pytest.approx(overlap(*projectors[::-1]), abs=1e-10)
    assert overlap(projectors[0], projectors[0]) == pytest.approx(1.0)
    inside = Projector.of(one, min(k, m))
    assert overlap(projectors[0], inside) == pytest.approx(1.0)


def test_random_null_spaces_overlap_by_chance() -> None:
    pairs = [(Projector.of(basis(60, 2 * i), 20), Projector.of(basis(60, 2 * i + 1), 35)) for i in range(20)]
    assert np.mean([overlap(*pair) for pair in pairs]) == pytest.approx(expected_overlap(*pairs[0]), abs=0.02)


def test_an_empty_null_space_overlaps_with_nothing() -> None:
    assert np.isnan(overlap(Projector.of(basis(4, 0), 0), Projector.of(basis(4, 1), 2)))


@given(st.integers(1, 10))
def test_leakage_on_other_data_is_that_of_the_vectors(null_dim: int) -> None:
    rng = np.random.default_rng(null_dim)
    vectors, projector = rng.normal(size=(50, 10)), Projector.of(basis(10, 7), null_dim)
    expected = np.linalg.norm(vectors @ projector.dense()) / np.linalg.norm(vectors)
    assert leakage_on(projector, vectors.T @ vectors / 50) == pytest.approx(expected, abs=1e-12)
    assert leakage_on(projector, np.zeros((10, 10))) == 0.0
