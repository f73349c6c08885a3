"""Sums of x x^T equal those of plain float64 numpy, for any chunking."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.nullspace import moments as moments_module
from nullbooth_cli.nullspace.moments import FactoredMoments, SecondMoments
from nullbooth_cli.nullspace.pooling import second_moment
from nullbooth_cli.store import pack_sums
from tests.support.invariants import assert_close


@pytest.fixture(autouse=True, scope="module", params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """numpy multiplies where torch has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.lists(st.integers(1, 17), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.sampled_from(["float16", "float32"]),
)
def test_any_chunking_gives_the_numpy_moment(dim: int, num_steps: int, chunks: list[int], seed: int, dtype: str) -> None:
    x = (np.random.default_rng(seed).standard_normal((num_steps, sum(chunks), dim)) * 3 + 1).astype(dtype)
    moments = SecondMoments(num_steps, dim)
    for part in np.split(x, np.cumsum(chunks)[:-1], axis=1):
        moments.update(torch.from_numpy(part))
    for of_step, (sum_xxt, sum_x, count) in zip(x.astype(np.float64), moments.sums(), strict=True):
        assert_close(sum_xxt, of_step.T @ of_step)
        assert_close(sum_x, of_step.sum(0), 1e-9)
        assert count == len(of_step)
        assert_close(second_moment(Sums(sum_xxt, sum_x, count)), of_step.T @ of_step / count)
        deviations = of_step - of_step.mean(0)
        difference = second_moment(Sums(sum_xxt, sum_x, count), centred=True) - deviations.T @ deviations / count
        assert np.abs(difference).max() <= 1e-10 * np.abs(of_step.T @ of_step / count).max()


@pytest.mark.parametrize("cached_bytes", [1, 3 * 50 * 8 * 8, 2 << 20])
@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_timesteps_are_the_same_alone_and_in_groups(monkeypatch: pytest.MonkeyPatch, cached_bytes: int, accumulate: str) -> None:
    monkeypatch.setattr(moments_module, "CACHED_BYTES", cached_bytes)
    x = torch.randn(7, 50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together, alone = SecondMoments(9, 8, accumulate=accumulate), SecondMoments(9, 8, accumulate=accumulate)
    together.update(x, first=1)
    for i, of_step in enumerate(x):
        alone.update(of_step[None], first=1 + i)
    tolerance = 1e-12 if accumulate == "float64" else 1e-6
    assert_close(together.sum_xxt.numpy(), alone.sum_xxt.numpy(), tolerance)
    assert_close(together.sum_xxt[1:8].numpy(), (x.mT @ x).numpy(), tolerance)
    assert_close(together.sum_x[1:8].numpy(), x.sum(1).numpy(), tolerance)
    assert together.count.tolist() == alone.count.tolist() == [0, *[50] * 7, 0]
    assert not together.sum_xxt[[0, 8]].any()


@pytest.mark.parametrize("dim", [192, 195, 200])
@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_wide_matrices_are_multiplied_in_strips(monkeypatch: pytest.MonkeyPatch, dim: int, accumulate: str) -> None:
    monkeypatch.setattr(moments_module, "TILE", 64)  # the triangle is mirrored in several squares
    x = np.random.default_rng(dim).standard_normal((300, dim)).astype(np.float16)
    moments = SecondMoments(2, dim, accumulate=accumulate)
    for part in np.split(x, [7, 100]):
        moments.update(torch.from_numpy(np.stack([part, 2 * part])))
    wide = x.astype(np.float64)
    expected = np.stack([wide.T @ wide, 4 * wide.T @ wide])
    assert_close(moments.sum_xxt.numpy(), expected, 1e-12 if accumulate == "float64" else 1e-6)
    assert torch.equal(moments.sum_xxt, moments.sum_xxt.mT)
    again = SecondMoments(2, dim)
    again.add(moments.sums())
    again.update(torch.from_numpy(np.stack([x, 2 * x])))
    assert_close(again.sum_xxt.numpy(), 2 * expected, 1e-6)


@pytest.mark.parametrize("first", [-1, 2])
def test_timesteps_that_are_not_there_are_refused_whole(first: int) -> None:
    moments = SecondMoments(3, 4)
    with pytest.raises(IndexError, match=f"timesteps {first} to {first + 1} of 3"):
        moments.update(torch.ones(2, 50, 4), first)
    assert not moments.count.any()
    assert not moments.sum_x.any()


def test_some_timesteps_are_packed_as_the_store_packs_each() -> None:
    x = torch.randn(5, 40, 6, generator=torch.Generator().manual_seed(0))
    for moments in (SecondMoments(5, 6), FactoredMoments(5, 6, 4)):
        moments.update(x)
        moments.update(x[2:4], first=2)
        expected = np.stack([pack_sums(of_step) for of_step in moments.sums()])
        np.testing.assert_array_equal(moments.packed(range(1, 4)).numpy(), expected[1:4])
        assert expected[:, -1, 0].tolist() == [40, 40, 80, 80, 40]


def test_float32_products_are_close_and_summed_in_float64() -> None:
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    moments = SecondMoments(1, 16, accumulate="float32")
    for part in x.split(64):
        moments.update(part[None])
    assert moments.sum_xxt.dtype == torch.float64
    assert_close(moments.sum_xxt[0].numpy(), (x.double().T @ x.double()).numpy(), 1e-6)


def test_sums_may_stay_elsewhere_than_the_vectors() -> None:
    """Products are formed where the vectors are; the sums of a large model may stay in host memory."""
    x = torch.randn(9, 3, dtype=torch.float64)
    moments, again = SecondMoments(1, 3), SecondMoments(1, 3)
    moments.update(x[None])
    again.add(moments.sums())
    again.add(moments.sums())
    assert_close(again.sum_xxt[0].numpy(), 2 * (x.T @ x).numpy())
    assert again.count == 18
