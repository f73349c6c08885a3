"""Stage project: where a spectrum may be cut, which moments are refused, and what other methods compute."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.errors import DataError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.decompose import ProjectUnit, _decompose, _PooledSums, eigh
from nullbooth_cli.nullspace.moments import SecondMoments
from nullbooth_cli.nullspace.pooling import DecompositionSettings, Pooling, pooled, second_moment
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Decomposition, Store
from tests.support.builders import execute, features_at, project_again, prompts_of, set_moment
from tests.support.invariants import assert_is_projector

SITE = Site("mid", "q", "input", ("mid.to_q.weight",), False, 4, 3)


def decomposed(sums: Sums, accumulate: str, at_once: int) -> Decomposition:
    """The decomposition of one moment, whose vectors came `at_once`."""
    site = replace(SITE, dim=len(sums.sum_x), num_tokens=at_once)
    settings_ = DecompositionSettings(Pooling(), (), accumulate=accumulate)
    unit = ProjectUnit(0, site, 0)
    [(_, found)] = _decompose([(unit, _PooledSums(sums, None))], torch.device("cpu"), settings_)
    assert found is not None
    return found


class TestNoiseFloor:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(2, 60), st.integers(0, 2**31), st.sampled_from(["float64", "float32"]), st.floats(0, 5))
    def test_exact_null_spaces_come_out_below_it(self, dim: int, seed: int, accumulate: str, mean: float) -> None:
        rng = np.random.default_rng(seed)
        rank = int(rng.integers(1, dim))
        # Integers: the vectors lie in the subspace exactly, so what is left is the round-off of summing and decomposing.
        x = np.round(rng.standard_normal((300, rank)) * 4 + mean) @ np.round(rng.standard_normal((rank, dim)) * 8)
        moments = SecondMoments(1, dim, accumulate=accumulate)
        for part in np.array_split(x, 4):
            moments.update(torch.from_numpy(part[None]))
        [(eigenvalues, _)] = eigh([second_moment(moments.sums()[0])])
        floor = spectrum.noise_floor(float(eigenvalues[-1]), dim, accumulate)
        assert np.abs(eigenvalues[: dim - rank]).max() < floor < 1e-5 * eigenvalues[-1] + 1e-300

    @pytest.mark.parametrize("accumulate", ["float64", "float32"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_identical_vectors_are_no_damage(self, accumulate: str, seed: int) -> None:
        """30,000 of them, one batch after the other: every addition rounds in the same direction."""
        dim, at_once = 96, 16
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, dim))).expand(1, at_once, dim)
        moments = SecondMoments(1, dim, accumulate=accumulate)
        for _ in range(30_000 // at_once):
            moments.update(x)
        found = decomposed(moments.sums()[0], accumulate, at_once)
        estimate = spectrum.noise_floor(float(found.eigenvalues[-1]), dim, accumulate)
        assert np.abs(found.eigenvalues[:-1]).max() < found.noise_floor * 2
        assert found.noise_floor == max(estimate, -found.eigenvalues[0])

    def test_a_floor_below_the_estimate_stays(self) -> None:
        x = np.random.default_rng(0).standard_normal((1, 400, 12)) @ np.diag([0.0] * 4 + [1.0] * 8)
        moments = SecondMoments(1, 12)
        moments.update(torch.from_numpy(x))
        found = decomposed(moments.sums()[0], "float64", 400)
        assert found.noise_floor == spectrum.noise_floor(float(found.eigenvalues[-1]), 12, "float64")

    @pytest.mark.parametrize(
        ("accumulate", "taken"), [("float64", 1e-10), ("float64", 1e-2), ("float32", 1e-5), ("float32", 1e-2)]
    )
    def test_a_moment_with_a_negative_eigenvalue_is_damaged(self, accumulate: str, taken: float) -> None:
        """A share of the trace is taken from a null direction of 30,000 vectors, as a changed byte would."""
        x = np.random.default_rng(0).standard_normal((30_000, 8)) @ np.random.default_rng(1).standard_normal((8, 96))
        moments = SecondMoments(1, 96, accumulate=accumulate)
        moments.update(torch.from_numpy(x[None]))
        sums = moments.sums()[0]
        null = np.linalg.eigh(sums.sum_xxt)[1][:, 0]
        spoiled = sums._replace(sum_xxt=sums.sum_xxt - taken * np.trace(sums.sum_xxt) * np.outer(null, null))
        with pytest.raises(
            DataError, match=r"mid\.q: the second moment is not positive semi-definite: its smallest eigenvalue is -"
        ):
            decomposed(spoiled, accumulate, 16)

    def test_a_centred_spectrum_has_that_of_the_moment_about_zero(self, tiny: Any) -> None:
        config, store = tiny
        data = config.model_dump()
        floors = {}
        for centred in (False, True):
            execute(
                build_config({**data, "covariance": {**data["covariance"], "centred": centred}}),
                "project",
                store=store,
                force=True,
            )
            floors[centred] = [store.projectors.read_noise_floor(site, 0) for site in store.sites]
        assert all(one <= other * (1 + 1e-9) for one, other in zip(floors[True], floors[False], strict=True))
        for site, floor in zip(store.sites, floors[True], strict=True):
            assert (
                floor > spectrum.noise_floor(float(store.projectors.read_eigenvalues(site, 0)[-1]), site.dim, "float64") * 0.999
            )


class TestBadMoments:
    def write(self, store: Store, site: Site, change: Any) -> None:
        for t in range(site.num_recorded(4)):
            sum_xxt, sum_x, count = store.moments.read_one(site, t)
            change(sum_xxt)
            set_moment(store, site, t, Sums(sum_xxt, sum_x, count))

    def test_not_finite(self, tiny: Any) -> None:
        config, store = tiny
        self.write(store, store.sites[1], lambda m: m.__setitem__((0, 0), np.nan))
        with pytest.raises(DataError, match=f"{store.sites[1].name}: the second moment is not finite"):
            execute(config, "project", store=store)

    def test_not_positive_semi_definite(self, tiny: Any) -> None:
        config, store = tiny
        self.write(store, store.sites[1], lambda m: m.__setitem__((0, 0), -m[0, 0]))
        with pytest.raises(
            DataError, match=rf"{store.sites[1].name}: the second moment is not positive semi-definite: its small"
        ):
            execute(config, "project", store=store)


def test_batches_of_one_size_give_what_single_matrices_give() -> None:
    rng = np.random.default_rng(0)
    matrices = [x.T @ x for x in rng.standard_normal((3, 20, 6))]
    for (values, vectors), matrix in zip(eigh(matrices), matrices, strict=True):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-10)
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-10)


def test_sites_of_any_order_and_size_are_each_decomposed(finished: Any) -> None:
    config, store = finished
    assert stage_states(config, prompts_of(config), store)["project"].state == "complete"
    for site in store.sites:
        values, vectors = store.projectors.read_eigenvalues(site, 0), store.projectors.read_eigenvectors(site, 0)
        moment = second_moment(pooled(store, site, range(site.num_recorded(4))))
        np.testing.assert_allclose(vectors * values @ vectors.T, moment, atol=1e-12 * values[-1] * site.dim)


def test_projectors_and_leakage_follow_from_the_features(finished) -> None:
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


class TestWhatOthersCompute:
    """The reference written out plainly, on the same vectors."""

    @pytest.fixture
    def known(self, tiny: Any) -> tuple[Config, Store, dict[Site, np.ndarray]]:
        config, store = tiny
        vectors = {
            site: np.concatenate(
                [
                    features_at(store, site, t, unit).reshape(-1, site.dim)
                    for t in range(site.num_recorded(4))
                    for unit in range(len(store.progress.cells("collect")))
                ]
            ).astype(np.float64)
            for site in store.sites
        }
        return config, store, vectors

    def test_alphaedit(self, known: Any) -> None:
        """Its code: the mean of k k^T, an SVD, the left vectors of singular values below 2e-2, P = U U^T."""
        config, store, vectors = known
        project_again(config, store, nullspace_threshold=2e-2)
        for site, k in vectors.items():
            u, s, _ = np.linalg.svd(k.T @ k / len(k))
            null = u[:, s < 2e-2]
            assert 0 < null.shape[1] < site.dim
            np.testing.assert_allclose(load_projector(store, site).dense(), null @ null.T, atol=1e-8)

    def test_the_percentile_rule(self, known: Any) -> None:
        config, store, vectors = known
        project_again(config, store, threshold_percent=40.0)
        for site, k in vectors.items():
            values, u = np.linalg.eigh(k.T @ k / len(k))
            null = u[:, values < np.percentile(values, 40.0)]
            np.testing.assert_allclose(load_projector(store, site).dense(), null @ null.T, atol=1e-7)

    def test_gpm(self, known: Any) -> None:
        """arXiv 2103.09762, equation 5: the least k singular values that hold the share of norm(R)^2; I - M M^T."""
        config, store, vectors = known
        project_again(config, store, energy=0.97)
        for site, k in vectors.items():
            u, s, _ = np.linalg.svd(k.T, full_matrices=False)
            kept = int(np.argmax(np.cumsum(s**2) >= 0.97 * (s**2).sum())) + 1
            m = u[:, :kept]
            np.testing.assert_allclose(load_projector(store, site).dense(), np.eye(site.dim) - m @ m.T, atol=1e-7)
