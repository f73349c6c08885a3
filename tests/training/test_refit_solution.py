"""The mathematics of a refit, against numpy written plainly: the minimiser, the ladder, and moments without full rank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.training.refit_solution import FLOOR, LEAST, Balance, solve

LADDER = (0.03, 1.0, 10.0, 3000.0)


def moments(rng: np.random.Generator, dim: int, ranks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """C1 and C0 of so many random vectors, at very different scales."""
    k1, k0 = (rng.standard_normal((dim, rank)) * scale for rank, scale in zip(ranks, (3.0, 50.0), strict=True))
    return k1 @ k1.T / max(k1.shape[1], 1), k0 @ k0.T / max(k0.shape[1], 1)


def plain(c1: np.ndarray, c0: np.ndarray, m: float) -> np.ndarray:
    """M of the module's docstring, of moments as they are."""
    s, eye = np.trace(c1) / np.trace(c0), np.eye(len(c1))
    return c1 @ np.linalg.inv(c1 + m * s * c0 + m * FLOOR * np.trace(c1) * eye)


@settings(max_examples=25)
@given(dim=st.integers(2, 9), ranks=st.tuples(st.integers(1, 12), st.integers(1, 12)), seed=st.integers(0, 99))
def test_the_ladder_is_what_the_solution_does(dim: int, ranks: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    c1, c0 = moments(rng, dim, ranks)
    w, change = rng.standard_normal((5, dim)), rng.standard_normal((5, dim))
    curve, moment = Balance(c1, c0).curve(change, w, LADDER), Moment(c0, np.zeros(dim), 1)
    assert curve.drift_before == pytest.approx(relative_drift(change, w, moment))
    for i, m in enumerate(LADDER):
        found = solve(c1, c0, m)
        np.testing.assert_allclose(found, plain(c1, c0, m), rtol=1e-5, atol=1e-6)
        after, lost = change @ found, change @ found - change
        energy = [max(np.trace(rows @ c1 @ rows.T), 0.0) for rows in (lost, change)]
        assert curve.missing[i] == pytest.approx(np.sqrt(energy[0] / energy[1]), abs=1e-5)
        assert curve.drift[i] == pytest.approx(relative_drift(after, w, moment), abs=1e-5)
    assert (np.diff(curve.missing) >= -1e-9).all()
    assert (np.diff(curve.drift) <= 1e-9).all()


@settings(max_examples=25)
@given(dim=st.integers(2, 9), seed=st.integers(0, 99), is_known=st.booleans())
def test_a_shift_of_the_bias_is_missing_afterwards(dim: int, seed: int, is_known: bool) -> None:
    """The change moves outputs by dW k + s, its refit by dW M k; without a mean the drift before is the most that it can be."""
    rng = np.random.default_rng(seed)
    k1, k0 = rng.standard_normal((dim, 7)) + 1, 20 * rng.standard_normal((dim, 8)) - 5
    c1, c0 = k1 @ k1.T / 7, k0 @ k0.T / 8
    w, change, shift = rng.standard_normal((5, dim)), rng.standard_normal((5, dim)), 3 * rng.standard_normal(5)
    means = k1.mean(1), k0.mean(1) if is_known else np.full(dim, np.nan)
    curve = Balance(c1, c0, means=means).curve(change, w, LADDER, shift=shift)
    before = change @ k1 + shift[:, None]
    for i, m in enumerate(LADDER):
        lost = change @ solve(c1, c0, m) @ k1 - before
        assert curve.missing[i] == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(before), abs=1e-5)
    moved = np.linalg.norm(change @ k0 + shift[:, None]) / np.linalg.norm(w @ k0)
    most = (np.linalg.norm(change @ k0) + np.linalg.norm(shift) * 8**0.5) / np.linalg.norm(w @ k0)
    assert curve.drift_before == pytest.approx(moved if is_known else most)
    np.testing.assert_allclose(curve.drift, Balance(c1, c0).curve(change, w, LADDER).drift)


def test_the_least_m_is_solved_for_the_widest_inputs() -> None:
    """One direction each, and all others in neither: the worst that float64 meets."""
    rng = np.random.default_rng(0)
    k1, k0 = rng.standard_normal((2, 500))
    c1, c0 = np.outer(k1, k1), np.outer(k0, k0)
    change, w = rng.standard_normal((2, 1, 500))
    after = change @ solve(c1, c0, LEAST)
    [missing] = Balance(c1, c0).curve(change, w, (LEAST,)).missing
    assert np.linalg.norm((after - change) @ k1) / np.linalg.norm(change @ k1) == pytest.approx(missing, abs=1e-5)


def test_nothing_near_the_solution_is_better() -> None:
    """dW' minimises what it loses of dW K1 plus m times what it does to K0."""
    rng = np.random.default_rng(0)
    c1, c0 = moments(rng, 6, (4, 9))
    c1, c0 = c1 / np.trace(c1), c0 / np.trace(c0)
    change = rng.standard_normal((3, 6))

    def objective(rows: np.ndarray) -> float:
        floor = c0 + FLOOR * np.eye(6)
        return float(np.trace((rows - change) @ c1 @ (rows - change).T) + 10 * np.trace(rows @ floor @ rows.T))

    best = change @ solve(c1, c0, 10.0)
    others = [objective(best + 1e-3 * rng.standard_normal(best.shape)) for _ in range(50)]
    assert min(others) > objective(best)


def test_own_directions_stay_and_foreign_ones_go() -> None:
    """The subject has directions 0 and 1, preserved prompts have 1 and 2, and nobody has 3."""
    c1, c0 = np.diag([1.0, 1.0, 0.0, 0.0]), np.diag([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(np.diag(solve(c1, c0, 9.0)), [1, 0.1, 0, 0], atol=1e-5)


def test_moments_without_energy() -> None:
    """No subject: nothing is left. Nothing preserved: everything that the subject has is left."""
    some, none = np.diag([1.0, 0.5, 0.0]), np.zeros((3, 3))
    assert not solve(none, some, 1.0).any()
    np.testing.assert_allclose(solve(some, none, 1.0), np.diag([1.0, 1.0, 0.0]), atol=1e-5)
    curve = Balance(none, some).curve(np.eye(3), np.eye(3), LADDER)
    assert not curve.missing.any()
    assert not curve.drift.any()


def test_fewer_rows_with_the_same_products_have_the_same_curve() -> None:
    """As a LoRA gives them."""
    rng = np.random.default_rng(0)
    c1, c0 = moments(rng, 5, (9, 9))
    b, a, w = rng.standard_normal((20, 2)), rng.standard_normal((2, 5)), rng.standard_normal((20, 5))
    whole, short = (Balance(c1, c0).curve(rows, w, LADDER) for rows in (b @ a, np.linalg.qr(b)[1] @ a))
    np.testing.assert_allclose([whole.missing, whole.drift], [short.missing, short.drift], rtol=1e-9)
    assert whole.drift_before == pytest.approx(short.drift_before)
