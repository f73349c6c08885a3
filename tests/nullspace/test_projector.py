"""A projector is one, and it removes the collected inputs and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import second_moment
from nullbooth_cli.nullspace.projector import Projector, expected_overlap, leakage_on, overlap
from tests.support.invariants import assert_is_projector


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 24), st.data())
def test_a_projector_is_one_and_kills_preserved_inputs(dim: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, dim - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    known = rng.standard_normal((50, rank)) @ rng.standard_normal((rank, dim))
    [(eigenvalues, eigenvectors)] = eigh([second_moment(Sums(known.T @ known, known.sum(0), 50))])
    assert (np.diff(eigenvalues) >= 0).all()
    assert np.abs(eigenvectors.T @ eigenvectors - np.eye(dim)).max() < 1e-10
    projector = Projector.of(eigenvectors, dim - rank)
    assert projector.factor.shape[1] == min(rank, dim - rank)
    p = projector.dense()
    assert_is_projector(p, dim - rank)
    assert np.linalg.norm(known @ p) <= 1e-6 * np.linalg.norm(known)
    edit = rng.standard_normal((5, dim))
    np.testing.assert_allclose(projector.apply(edit), edit @ p, atol=1e-10)
    as_tensor = projector.apply(torch.from_numpy(edit).float())
    assert as_tensor.dtype == torch.float32
    np.testing.assert_allclose(as_tensor.numpy(), edit @ p, atol=1e-4)


def test_a_centred_moment_leaks_the_mean() -> None:
    """Why the default is uncentred: the mean direction is known, and a centred matrix calls it null."""
    rng = np.random.default_rng(0)
    known = np.zeros((200, 6))
    known[:, :2] = rng.standard_normal((200, 2))
    known[:, 2] = 3.0
    sums = Sums(known.T @ known, known.sum(0), 200)
    leaks = {}
    for centred in (False, True):
        [(eigenvalues, eigenvectors)] = eigh([second_moment(sums, centred=centred)])
        p = Projector.of(eigenvectors, int((eigenvalues < 1e-9 * eigenvalues[-1]).sum())).dense()
        leaks[centred] = np.linalg.norm(known @ p) / np.linalg.norm(known)
    assert leaks[False] < 1e-12
    assert leaks[True] > 0.5


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.data())
def test_the_smaller_factor_is_kept_and_is_the_same_projector(dim: int, data: st.DataObject) -> None:
    null_dim = data.draw(st.integers(0, dim))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    q, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    projector = Projector.of(q, null_dim)
    assert projector.factor.shape[1] == min(null_dim, dim - null_dim)
    assert (projector.null_dim, projector.dim) == (null_dim, dim)
    np.testing.assert_allclose(projector.dense(), q[:, :null_dim] @ q[:, :null_dim].T, atol=1e-12)


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
    assert leakage_on(projector, Moment(vectors.T @ vectors / 50, vectors.mean(0), 50)) == pytest.approx(expected, abs=1e-12)
    assert leakage_on(projector, Moment(np.zeros((10, 10)), np.zeros(10), 1)) == 0.0
