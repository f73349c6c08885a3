"""Moments equal plain float64 numpy for any chunking, and projectors are what the mathematics says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.collect.token_sample import _draw, sample_tokens
from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.nullspace import moments as moments_module
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.moments import SecondMoments
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.space import place_for_sums
from nullbooth_cli.tensors import unpack
from tests.support.builders import execute, features_at, small_config


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


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
def test_wide_matrices_are_multiplied_in_strips(dim: int, accumulate: str) -> None:
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


def test_float32_products_are_close_and_summed_in_float64() -> None:
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    moments = SecondMoments(1, 16, accumulate="float32")
    for part in x.split(64):
        moments.update(part[None])
    assert moments.sum_xxt.dtype == torch.float64
    assert_close(moments.sum_xxt[0].numpy(), (x.double().T @ x.double()).numpy(), 1e-6)


def assert_is_projector(p: np.ndarray, null_dim: int) -> None:
    assert np.abs(p - p.T).max() == 0
    assert np.abs(p @ p - p).max() < 1e-10
    assert abs(np.trace(p) - null_dim) < 1e-10


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 24), st.data())
def test_a_projector_is_one_and_kills_what_is_known(dim: int, data: st.DataObject) -> None:
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


class TestOnTheModel:
    """The stages against plain numpy on the stored features."""

    def test_moments_are_numpys(self, finished) -> None:
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

    def test_projectors_and_leakage_follow_from_the_features(self, finished) -> None:
        _, store = finished
        units = len(store.progress.done("collect"))
        for site in store.sites:
            k = np.concatenate(
                [
                    features_at(store, site, t, u).reshape(-1, site.dim)
                    for t in range(1 if site.timestep_free else 4)
                    for u in range(units)
                ]
            ).astype(np.float64)
            projector = load_projector(store, site)
            null_dim, leakage, _ = store.projectors.read_cut(site, 0)
            p = projector.dense()
            assert_is_projector(p, null_dim)
            assert null_dim == projector.null_dim > 0
            assert leakage == pytest.approx(np.linalg.norm(k @ p) / np.linalg.norm(k), rel=1e-6, abs=1e-10)

    def test_another_batch_size_gives_the_same_moments(self, finished, tmp_path) -> None:
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


class TestSampling:
    def test_the_generator_is_splitmix64(self) -> None:
        """The first outputs for the seed 1234567, as published with the reference implementation."""
        drawn = [int(_draw(torch.tensor(1234567), torch.tensor(i))) % 2**64 for i in range(3)]
        assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def test_the_choice_depends_on_seed_row_step_and_site_alone(self) -> None:
        values = torch.arange(4 * 50).reshape(4, 50, 1)

        def chosen(rows: list[int], seed: int = 0, step: int = 0, site: str = "a") -> torch.Tensor:
            return sample_tokens(values[: len(rows)], 7, seed, rows, step, site) % 50

        every = chosen([0, 1, 2, 3])
        assert every.shape == (4, 7, 1)
        assert all(len(set(prompt.flatten().tolist())) == 7 for prompt in every)
        assert torch.equal(chosen([2])[0], every[2])
        assert torch.equal(chosen([3, 0])[1], every[0])
        for other in (chosen([0], seed=1), chosen([0], step=1), chosen([0], site="b"), chosen([1])):
            assert not torch.equal(other[0], every[0])
        assert torch.equal(sample_tokens(values, 50, 0, [0, 1, 2, 3], 0, "a"), values)

    def test_every_token_is_as_likely(self) -> None:
        """4,000 draws of 8 of 20 tokens: each token comes 1,600 times, give or take five standard deviations."""
        index = torch.arange(20).reshape(1, 20, 1)
        drawn = torch.cat([sample_tokens(index, 8, 0, [row], 0, "site").flatten() for row in range(4000)])
        counts = torch.bincount(drawn, minlength=20)
        assert (counts - 1600).abs().max() < 5 * (4000 * 0.4 * 0.6) ** 0.5

    def test_moments_of_a_sample_are_unbiased(self) -> None:
        """The mean over many samples of the second moment of a sample is the second moment of all tokens, within its error."""
        values = torch.randn(1, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 5.0)
        exact = values[0].T @ values[0] / 30
        samples = torch.stack([sample_tokens(values, 6, 0, [row], 0, "s")[0] for row in range(3000)])
        moments = samples.transpose(1, 2) @ samples / 6
        error = moments.std(0) / 3000**0.5
        assert ((moments.mean(0) - exact).abs() < 5 * error).all()

    def test_on_the_model_it_is_repeatable_and_leaves_text_alone(self, tmp_path) -> None:
        layers = {"collect__cross_attention_layers": ["mid_block*", 0], "collect__tokens_per_prompt": 5}
        one, two, folded, whole = (
            execute(small_config(tmp_path / f"{name}.zarr", **{**layers, **changes}), "collect", "covariance")
            for name, changes in (
                ("one", {}),
                ("two", {"collect__batch_size": 8}),
                ("folded", {"collect__keep": "moments"}),
                ("whole", {"collect__tokens_per_prompt": None}),
            )
        )
        for site, full in zip(one.sites, whole.sites, strict=True):
            assert site.num_tokens == (full.num_tokens if site.feature == "k" else 5)
            for t in range(site.num_recorded(4)):
                sampled = features_at(one, site, t, 0)
                np.testing.assert_allclose(sampled, features_at(two, site, t, 0)[:3], rtol=1e-3, atol=1e-3)
                everything = features_at(whole, full, t, 0)
                assert all((np.abs(everything[0] - token).max(1) < 1e-4).any() for token in sampled[0])
                assert one.moments.read_one(site, t)[2] == folded.moments.read_one(site, t)[2] == 8 * site.num_tokens
                assert_close(folded.moments.read_one(site, t)[0], one.moments.read_one(site, t)[0], 1e-12)


def test_sums_may_stay_elsewhere_than_the_vectors() -> None:
    """Products are formed where the vectors are; the sums of a large model may stay in host memory."""
    x = torch.randn(9, 3, dtype=torch.float64)
    moments, again = SecondMoments(1, 3), SecondMoments(1, 3)
    moments.update(x[None])
    again.add(moments.sums())
    again.add(moments.sums())
    assert_close(again.sum_xxt[0].numpy(), 2 * (x.T @ x).numpy())
    assert again.count == 18
    site = Site("l", "q", "input", ("w",), False, 1, 1000)
    assert place_for_sums([site], 1, torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ResourceError, match="the sums of 1 sites and 10000000 steps need"):
        place_for_sums([site], 10_000_000, torch.device("cpu"))
