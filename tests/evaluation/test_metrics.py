"""The metrics on clouds whose distances are known: closed forms, plain loops, equal and disjoint sets, and symmetries."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nullbooth_cli.evaluation import metrics

Cloud = NDArray[np.float64]
seeds = st.integers(0, 2**31)


def cloud(seed: int, count: int = 24, dim: int = 3, shift: float = 0.0) -> Cloud:
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


def with_moments(mean: Cloud, covariance: Cloud, count: int, seed: int) -> Cloud:
    """Vectors whose own mean and covariance (N - 1) are exactly these."""
    x = cloud(seed, count, len(mean))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


SYMMETRIC: dict[str, Callable[[Cloud, Cloud], float]] = {
    "frechet": metrics.frechet_distance,
    "kernel": metrics.kernel_distance,
    "one_nn": metrics.one_nn_accuracy,
    "jensen_shannon": metrics.jensen_shannon,
}


class TestFrechet:
    def test_diagonal_gaussians(self) -> None:
        """|m|^2 + sum (s_x - s_y)^2 for covariances that commute."""
        x = with_moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 40, 0)
        y = with_moments(np.array([1.0, 0.0, 2.0]), np.diag([9.0, 4.0, 1.0]), 25, 1)
        assert metrics.frechet_distance(x, y) == pytest.approx(5.0 + 4.0 + 0.0 + 4.0, rel=1e-9)

    @given(seeds)
    @settings(max_examples=20, deadline=None)
    def test_any_two_covariances(self, seed: int) -> None:
        """Against the formula with matrix roots by eigendecomposition, written plainly."""
        rng = np.random.default_rng(seed)
        (a, b), (m, n) = rng.standard_normal((2, 4, 4)), rng.standard_normal((2, 4))
        s, t = a @ a.T + 0.1 * np.eye(4), b @ b.T + 0.1 * np.eye(4)
        values, vectors = np.linalg.eigh(s)
        root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
        expected = np.square(m - n).sum() + np.trace(s) + np.trace(t) - 2 * np.sqrt(np.linalg.eigvalsh(root @ t @ root)).sum()
        assert metrics.frechet_distance(with_moments(m, s, 30, 0), with_moments(n, t, 20, 1)) == pytest.approx(expected, rel=1e-7)

    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=["fewer vectors than dimensions", "more"])
    def test_equal_clouds_are_at_zero_whatever_their_rank(self, shape: tuple[int, int]) -> None:
        x = 1e3 * cloud(0, *shape)
        assert metrics.frechet_distance(x, x[::-1]) <= 1e-12 * np.square(x).sum()


class TestKernel:
    @pytest.mark.parametrize("paired", [False, True])
    def test_is_the_double_sum(self, paired: bool) -> None:
        x, y = cloud(0, 6), cloud(1, 6, shift=0.5)

        def k(a: Cloud, b: Cloud) -> float:
            return float((a @ b / 3 + 1) ** 3)

        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        every = pairs if paired else [(i, j) for i in range(6) for j in range(6)]
        expected = np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs]) - 2 * np.mean([k(x[i], y[j]) for i, j in every])
        assert metrics.kernel_distance(x, y, paired=paired) == pytest.approx(expected, rel=1e-9)

    def test_is_unbiased(self) -> None:
        """Two draws of one distribution: the mean over many is zero, within four of its standard errors."""
        found = np.array([metrics.kernel_distance(cloud(2 * i), cloud(2 * i + 1)) for i in range(300)])
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(300)
        assert metrics.kernel_distance(cloud(0), cloud(1, shift=2.0)) > 10 * found.std()

    def test_twins_that_hardly_differ_are_at_zero(self) -> None:
        x = cloud(0)
        assert metrics.kernel_distance(x, x, paired=True) == pytest.approx(0, abs=1e-12)
        assert metrics.kernel_distance(x, x) < -0.05


class TestNeighbourhoods:
    def test_one_distribution(self) -> None:
        """Density 1, and coverage as Naeem et al. derive it: both are expectations."""
        n, m, k = 40, 30, 3
        found = [metrics.neighbourhoods(cloud(2 * i, n), cloud(2 * i + 1, m), k=k) for i in range(200)]
        expected = 1 - np.prod([n - i for i in range(1, k + 1)]) / np.prod([m + n - i for i in range(1, k + 1)])
        assert np.mean([f.coverage for f in found]) == pytest.approx(expected, abs=0.02)
        assert np.mean([f.density for f in found]) == pytest.approx(1.0, abs=0.05)

    def test_equal_and_disjoint(self) -> None:
        x = cloud(0)
        assert metrics.neighbourhoods(x, x, paired=True) == metrics.Neighbourhoods(1.0, 1.0, 1.0, 1.0)
        assert metrics.neighbourhoods(x, cloud(1, shift=99.0)) == metrics.Neighbourhoods(0.0, 0.0, 0.0, 0.0)

    def test_lost_modes_lower_recall_and_not_precision(self) -> None:
        two = np.concatenate([cloud(0), cloud(1, shift=50.0)])
        one = cloud(2, 48)
        lost = metrics.neighbourhoods(two, one)
        assert lost.precision > 0.9
        assert lost.recall <= 0.5
        assert lost.coverage <= 0.5


class TestOneNearestNeighbour:
    def test_one_distribution_and_two(self) -> None:
        found = [metrics.one_nn_accuracy(cloud(2 * i, 40), cloud(2 * i + 1, 40), paired=True) for i in range(100)]
        assert np.mean(found) == pytest.approx(0.5, abs=0.02)
        assert metrics.one_nn_accuracy(cloud(0), cloud(1, shift=99.0)) == 1.0

    def test_twins(self) -> None:
        """Each twin is the other's nearest neighbour: an accuracy of 0 as published, of a half when twins are left out."""
        x = cloud(0)
        assert metrics.one_nn_accuracy(x, x + 1e-9) == 0.0
        assert metrics.one_nn_accuracy(x, x, paired=True) == 0.5

    def test_by_hand(self) -> None:
        x, y = np.array([[0.0], [1.0], [9.0]]), np.array([[9.5], [20.0], [22.0]])
        # 0 and 1 find each other, 9 finds 9.5 and 9.5 finds 9, 20 and 22 find each other.
        assert metrics.one_nn_accuracy(x, y) == pytest.approx(4 / 6)


class TestJensenShannon:
    def test_by_hand(self) -> None:
        """Two bins; p = (3/4, 1/4), q = (1/4, 3/4): one bit less the entropy of a quarter. The constant feature adds nothing."""
        x = np.array([[0.0, 7.0]] * 3 + [[1.0, 7.0]])
        y = np.array([[1.0, 7.0]] * 3 + [[0.0, 7.0]])
        quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
        assert metrics.jensen_shannon(x, y) == pytest.approx((1 - quarter) / 2)

    def test_equal_and_disjoint(self) -> None:
        assert metrics.jensen_shannon(cloud(0), cloud(0)[::-1]) == 0.0
        assert metrics.jensen_shannon(cloud(0), cloud(1, shift=99.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_symmetry_and_order(name: str, seed: int) -> None:
    metric, rng = SYMMETRIC[name], np.random.default_rng(seed)
    x, y = cloud(seed), cloud(seed + 1, shift=rng.uniform(0, 2))
    found = metric(x, y)
    assert metric(y, x) == pytest.approx(found, abs=1e-9)
    assert metric(rng.permutation(x), rng.permutation(y)) == pytest.approx(found, abs=1e-9)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_rotations_and_shifts_change_no_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = cloud(seed), cloud(seed + 1, shift=0.7)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    shift = rng.standard_normal(3)
    moved_x, moved_y = x @ rotation + shift, y @ rotation + shift
    assert metrics.frechet_distance(moved_x, moved_y) == pytest.approx(metrics.frechet_distance(x, y), rel=1e-7, abs=1e-9)
    assert metrics.one_nn_accuracy(moved_x, moved_y) == metrics.one_nn_accuracy(x, y)
    assert metrics.neighbourhoods(moved_x, moved_y) == metrics.neighbourhoods(x, y)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_scales_of_single_features_do_not_matter_to_histograms(seed: int) -> None:
    x, y = cloud(seed), cloud(seed + 1, shift=0.7)
    scale = 2.0 ** np.random.default_rng(seed).integers(-9, 9, 3)  # powers of two: no rounding moves a value over a border
    assert metrics.jensen_shannon(x * scale, y * scale) == pytest.approx(metrics.jensen_shannon(x, y), abs=1e-12)


def test_cosines_and_psnr() -> None:
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [5.0, 0.0]])
    assert metrics.mean_cosine(x, y) == pytest.approx(0.5)
    assert metrics.cross_cosine(x, y) == pytest.approx(0.5)
    assert metrics.cross_cosine(x[:1], y) == pytest.approx(1.0)
    assert metrics.psnr(0.01) == pytest.approx(20.0)
    assert metrics.psnr(0.0) is None
