"""The bound of a factor holds for any vectors, chunks, checkpoints and processes; a rank that covers them loses nothing."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nullbooth_cli.datatypes import FactoredSums, Sums
from nullbooth_cli.nullspace.decompose_factor import decompose_factor
from nullbooth_cli.nullspace.factored import SHRUNK, reduced
from nullbooth_cli.nullspace.moments import FactoredMoments
from nullbooth_cli.nullspace.pooling import add_up, moment_of
from nullbooth_cli.nullspace.projector import Projector, leakage_on, relative_drift
from nullbooth_cli.nullspace.spectrum import leakage

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Vectors `[N, D]`, the ends of their chunks, and those chunks after which a process ends and another one begins."""

    x: Floats
    rank: int
    chunks: list[int]
    ends: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dim, count = draw(st.integers(4, 24)), draw(st.integers(1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    decay = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    x = rng.standard_normal((count, dim)) * np.arange(1, dim + 1) ** -decay * 10.0 ** draw(st.integers(-3, 3))
    chunks = draw(st.lists(st.integers(0, count), max_size=8))
    return Case(x, draw(st.integers(2, dim - 1)), sorted(chunks), draw(st.lists(st.integers(0, 8), max_size=3)))


def summed(case: Case) -> FactoredSums:
    """As processes would: each sums some chunks, is stopped once and resumed from what it wrote; then all are added up."""
    parts, moments = [], FactoredMoments(1, case.x.shape[1], case.rank)
    for number, chunk in enumerate(np.split(case.x, case.chunks)):
        moments.update(torch.from_numpy(chunk)[None])
        resumed = FactoredMoments(1, case.x.shape[1], case.rank)
        if number in case.ends:
            parts += moments.sums()
        else:
            resumed.add(moments.sums())
        moments = resumed
    total = add_up([*parts, *moments.sums()])
    assert isinstance(total, FactoredSums)
    return total


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_bound_holds_for_any_chunks_and_processes(case: Case) -> None:
    whole, found = case.x.T @ case.x, summed(case)
    rounding = 1e-12 * np.trace(whole)
    lost = np.linalg.eigvalsh(whole - found.factor.T @ found.factor)
    assert lost[0] >= -rounding
    assert lost[-1] <= found.delta + rounding
    assert found.trace == pytest.approx(np.trace(whole), rel=1e-12)
    np.testing.assert_allclose(found.sum_x, case.x.sum(0), atol=1e-11 * np.abs(case.x).sum())
    assert found.count == len(case.x)
    values = np.linalg.eigvalsh(whole)[::-1]
    for k in range(max(1, case.rank // SHRUNK)):
        assert found.delta <= values[k:].sum() / (max(1, case.rank // SHRUNK) - k) + rounding


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_what_is_said_of_a_factor_is_true_of_the_whole_moment(case: Case, seed: int) -> None:
    """Leakage and drift are the most that they can be, on the same and on other data."""
    rng, dim = np.random.default_rng(seed), case.x.shape[1]
    exact = moment_of(Sums(case.x.T @ case.x, case.x.sum(0), len(case.x)))
    moment = moment_of(summed(case))
    found = decompose_factor(moment, None, "cpu", "float64")
    rounding = 1e-7  # the root of that of a share
    for null_dim in range(dim - case.rank, dim + 1):
        projector = Projector.of(found.eigenvectors, null_dim)
        said = leakage(found.energies[0], null_dim)
        assert said >= leakage_on(projector, exact) - rounding
        assert leakage_on(projector, moment) == pytest.approx(said, abs=rounding)
    for projector in (Projector(np.linalg.qr(rng.standard_normal((dim, 2)))[0], complement) for complement in (True, False)):
        assert leakage_on(projector, moment) >= leakage_on(projector, exact) - rounding
    change, weight, shift = rng.standard_normal((3, dim)), rng.standard_normal((5, dim)), rng.standard_normal(3)
    assert relative_drift(change, weight, moment) >= relative_drift(change, weight, exact) * (1 - 1e-9)
    assert relative_drift(change, weight, moment, shift=shift) >= relative_drift(change, weight, exact, shift=shift) * (1 - 1e-9)
    assert np.linalg.eigvalsh(moment.ceiling - exact.second_moment)[0] >= -1e-12 * exact.trace
    gaps = np.linalg.eigvalsh(exact.second_moment) - found.eigenvalues
    assert gaps.min() >= -1e-12 * exact.trace
    assert gaps.max() <= found.noise_floor + 1e-12 * exact.trace


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 4), st.lists(st.integers(0, 80), max_size=6))
def test_a_rank_that_covers_the_vectors_gives_the_projector_of_the_whole_moment(
    seed: int, true_rank: int, more: int, chunks: list[int]
) -> None:
    rng, dim = np.random.default_rng(seed), 16
    x = rng.standard_normal((80, true_rank)) @ np.linalg.qr(rng.standard_normal((dim, true_rank)))[0].T
    rank = max(true_rank + more, 2)
    moment = moment_of(summed(Case(x, rank, sorted(chunks), [0, 2])))
    whole = x.T @ x / 80
    assert moment.bound <= 1e-13 * np.trace(whole)
    np.testing.assert_allclose(moment.second_moment, whole, atol=1e-12 * np.trace(whole))
    found = decompose_factor(moment, None, "cpu", "float64")
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(whole), atol=1e-12 * np.trace(whole))
    of_factor = Projector.of(found.eigenvectors, dim - true_rank).dense()
    of_whole = Projector.of(np.linalg.eigh(whole)[1], dim - true_rank).dense()
    smallest = np.linalg.eigvalsh(whole)[-true_rank]
    np.testing.assert_allclose(of_factor, of_whole, atol=1e-13 * np.trace(whole) / smallest + 1e-13)


def test_held_out_energies_that_no_kept_direction_has_count_as_leaked() -> None:
    rng = np.random.default_rng(5)
    x, other = rng.standard_normal((60, 12)), rng.standard_normal((40, 12))
    moments = [FactoredMoments(1, 12, 4), FactoredMoments(1, 12, 4)]
    for of_prompts, rows in zip(moments, (x, other), strict=True):
        of_prompts.update(torch.from_numpy(rows)[None])
    found = decompose_factor(*(moment_of(of_prompts.sums()[0]) for of_prompts in moments), "cpu", "float64")
    p = Projector.of(found.eigenvectors, 9).dense()
    assert found.energies.sum(1) == pytest.approx([np.square(x).sum() / 60, np.square(other).sum() / 40])
    assert leakage(found.energies[1], 9) >= np.linalg.norm(other @ p) / np.linalg.norm(other)


def test_the_largest_directions_keep_all_their_energy() -> None:
    """Only the last fifth of the rows gives energy up; plain Frequent Directions would take it from all of them."""
    rows = np.diag([10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5, 0.25])
    factor, delta = reduced(rows, 10)
    assert delta == pytest.approx(0.25)
    np.testing.assert_allclose(np.diag(factor.T @ factor), [100, 81, 64, 49, 36, 25, 16, 9, 4 - 0.25, 1 - 0.25, 0, 0], atol=1e-12)


def test_few_rows_stay_as_they_are() -> None:
    factor, delta = reduced(np.eye(2, 5), 4)
    np.testing.assert_array_equal(factor, np.eye(4, 5) * [1, 1, 0, 0, 0])
    assert delta == 0.0


def test_eigenvectors_that_were_not_kept_cannot_be_preserved() -> None:
    with pytest.raises(ValueError, match="3 eigenvectors cannot span 5 directions"):
        Projector.of(np.eye(8)[:, -3:], 3)


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_float32_products_stay_near(accumulate: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 5)) @ rng.standard_normal((5, 20))
    moments = FactoredMoments(1, 20, 6, accumulate=accumulate)
    moments.update(torch.from_numpy(x)[None])
    [sums] = moments.sums()
    off = np.abs(sums.factor.T @ sums.factor - x.T @ x).max() / np.square(x).sum()
    assert off <= 1e-6 if accumulate == "float32" else 1e-13
    assert sums.factor.dtype == np.float64
