"""The equations of edits against those of the papers, written plainly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.editing.solve import alphaedit, smallest, uce, without
from nullbooth_cli.nullspace.projector import Projector

RIDGES, SEEDS = st.floats(1e-2, 10), st.integers(0, 99)


def projector_of(rng: np.random.Generator, dim: int, least: int = 1) -> Projector:
    return Projector.of(np.linalg.qr(rng.standard_normal((dim, dim)))[0], int(rng.integers(least, dim + 1)))


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


@given(tokens=st.integers(1, 12), dim=st.integers(2, 8), ridge=RIDGES, seed=SEEDS)
def test_the_formulas_are_those_of_the_papers(tokens: int, dim: int, ridge: float, seed: int) -> None:
    """AlphaEdit as its code solves it, with C; UCE's quotient of sums."""
    rng = np.random.default_rng(seed)
    w, k1, target, k0, kp = (
        rng.standard_normal(shape) for shape in ((5, dim), (dim, tokens), (dim, tokens), (dim, 30), (dim, 3))
    )
    projector, c, one = projector_of(rng, dim), kp @ kp.T, np.eye(dim)
    p, r = projector.dense(), w @ target - w @ k1
    of_alphaedit = np.linalg.solve(p @ (k1 @ k1.T + c) + ridge * one, p @ k1 @ r.T).T
    close(r @ alphaedit(k1.T, projector, ridge, c), of_alphaedit)
    c0 = k0 @ k0.T
    of_uce = (w @ target @ k1.T + w @ c0 + ridge * w) @ np.linalg.inv(k1 @ k1.T + c0 + ridge * one)
    close(w + r @ uce(k1.T, c0, ridge), of_uce)
    close(r @ uce(k1.T, c0, ridge, c), r @ uce(k1.T, c0 + c, ridge))


@given(tokens=st.integers(1, 12), dim=st.integers(5, 9), ridge=RIDGES, seed=SEEDS)
def test_speed_is_alphaedit_in_what_the_equal_inputs_leave(tokens: int, dim: int, ridge: float, seed: int) -> None:
    """dW = R K1^T P (I - M K2 (K2^T P M K2)^-1 K2^T P) M of the authors, and dW K2 = 0."""
    rng = np.random.default_rng(seed)
    r, k1, k2 = (rng.standard_normal(shape) for shape in ((5, tokens), (dim, tokens), (dim, 4)))
    projector, one = projector_of(rng, dim, 4), np.eye(dim)
    p = projector.dense()
    m = np.linalg.inv(k1 @ k1.T @ p + ridge * one)
    of_speed = r @ k1.T @ p @ (one - m @ k2 @ np.linalg.inv(k2.T @ p @ m @ k2) @ k2.T @ p) @ m
    left = without(projector, k2.T)
    assert left.null_dim == projector.null_dim - 4
    change = r @ alphaedit(k1.T, left, ridge)
    np.testing.assert_allclose(change, of_speed, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(change @ k2, 0, atol=1e-8)


@pytest.mark.parametrize("null_dim", [3, 8])
def test_inputs_without_a_part_in_the_null_space_take_nothing_of_it(null_dim: int) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    projector = Projector.of(basis, null_dim)
    preserved = rng.standard_normal((5, 10 - null_dim)) @ basis[:, null_dim:].T
    np.testing.assert_allclose(without(projector, preserved).dense(), projector.dense(), atol=1e-12)
    twice = rng.standard_normal((1, 10))
    assert without(projector, np.vstack([twice, 2 * twice, preserved])).null_dim == null_dim - 1


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), dim=st.integers(2, 8), ridge=RIDGES, seed=SEEDS)
def test_one_by_one_is_at_once(counts: list[int], dim: int, ridge: float, seed: int) -> None:
    """With C and the same ridge, for the targets that each edit had: dW (S P + a I) = sum of R K^T P, S that of all K K^T."""
    rng = np.random.default_rng(seed)
    start, k0 = rng.standard_normal((5, dim)), rng.standard_normal((dim, 30))
    projector, c0 = projector_of(rng, dim), k0 @ k0.T
    for is_alphaedit in (True, False):
        p, preserved = (projector.dense(), np.zeros_like(c0)) if is_alphaedit else (np.eye(dim), c0)
        w, before, right = start, np.zeros((dim, dim)), np.zeros((5, dim))
        for count in counts:
            k, target = rng.standard_normal((2, dim, count))
            right += (w @ target - start @ k) @ k.T @ p
            factor = alphaedit(k.T, projector, ridge, before) if is_alphaedit else uce(k.T, c0, ridge, before)
            w = w + (w @ target - w @ k) @ factor
            before = before + k @ k.T
        close(w - start, right @ np.linalg.inv((before + preserved) @ p + ridge * np.eye(dim)))


@given(dim=st.integers(4, 8), ridge=RIDGES, seed=SEEDS)
def test_orthogonal_edits_are_the_same_in_every_order(dim: int, ridge: float, seed: int) -> None:
    """Of the same values: K1 of each edit is orthogonal to those of the others within the null space."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    projector = Projector.of(basis, dim - 1)
    start, keys = rng.standard_normal((5, dim)), [basis[:, i : i + 1] * rng.uniform(0.5, 2) for i in range(dim - 1)]
    values = [rng.standard_normal((5, 1)) for _ in keys]
    ends = []
    for order in (range(dim - 1), reversed(range(dim - 1))):
        w, before = start, np.zeros((dim, dim))
        for i in order:
            w = w + (values[i] - w @ keys[i]) @ alphaedit(keys[i].T, projector, ridge, before)
            before = before + keys[i] @ keys[i].T
        ends.append(w)
    close(*ends)


def test_a_small_ridge_leaves_nothing_missing_where_there_is_room() -> None:
    rng = np.random.default_rng(0)
    projector = Projector.of(np.linalg.qr(rng.standard_normal((20, 20)))[0], 12)
    source, missing = rng.standard_normal((4, 20)), rng.standard_normal((4, 5))
    change = missing.T @ alphaedit(source, projector, 1e-10)
    np.testing.assert_allclose(source @ change.T, missing, atol=1e-8)
    np.testing.assert_allclose(change @ projector.dense(), change, atol=1e-12)


def test_the_smallest_directions() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0]
    moment = basis @ np.diag(np.arange(10.0)) @ basis.T
    for share, count in ((0.16, 1), (0.01, 1), (0.35, 3)):
        np.testing.assert_allclose(smallest(moment, share), basis[:, :count] @ basis[:, :count].T, atol=1e-12)
