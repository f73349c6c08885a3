"""Spectra over timesteps and overlaps between layers, against plain numpy."""

from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.model.device import pick_device
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.report import over_timesteps
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import per_timestep

CPU = pick_device("cpu")


def test_each_timestep_is_cut_alone(finished: tuple[Config, Store]) -> None:
    config, store = finished
    found = list(over_timesteps.over_timesteps(store, CPU, config, store.sites))
    varying = [site for site in store.sites if not site.timestep_free]
    assert [each.site for each in found] == varying
    for each in found[:3]:
        bases = []
        for t in range(4):
            sum_xxt, _, count = store.moments.read_one(each.site, t)
            values, vectors = np.linalg.eigh(sum_xxt / count)
            null_dim = int((values < 0.05 * values[-1]).sum())
            bases.append(vectors[:, :null_dim])
            assert each.null_dim[t] == null_dim
            assert each.leakage[t] == pytest.approx(np.sqrt(values[:null_dim].clip(0).sum() / values.sum()), rel=1e-6)
            assert each.effective_rank[t] == pytest.approx(spectrum.effective_rank(values), rel=1e-9)
            np.testing.assert_allclose(each.eigenvalues[t], values, atol=1e-9 * values[-1])
        for i in range(4):
            for j in range(4):
                shared = np.linalg.norm(bases[i].T @ bases[j]) ** 2 / min(bases[i].shape[1], bases[j].shape[1])
                assert each.overlap[i, j] == pytest.approx(shared, abs=1e-6)
        assert each.timesteps.tolist() == [step.timestep for step in store.schedule()]
        assert np.isnan(each.heldout_leakage).all()


def test_stored_decompositions_give_the_same(finished: tuple[Config, Store], tmp_path: Path) -> None:
    config, store = finished
    per_step, stepwise = per_timestep(config, store, tmp_path)
    pooled_scope = list(over_timesteps.over_timesteps(store, CPU, config, store.sites))
    for one, other in zip(pooled_scope, over_timesteps.over_timesteps(stepwise, CPU, per_step, store.sites), strict=True):
        np.testing.assert_array_equal(one.null_dim, other.null_dim)
        np.testing.assert_allclose(one.overlap, other.overlap, atol=1e-6)


def test_between_layers_of_one_width(finished: tuple[Config, Store]) -> None:
    store = finished[1]
    found = list(over_timesteps.between_layers(store, store.sites))
    assert {(of.feature, of.dim) for of in found} >= {("q", 80), ("out", 32)}
    for of in found:
        sites = [site for site in store.sites if (site.feature, site.dim) == (of.feature, of.dim)]
        assert list(of.layers) == [site.layer for site in sites]
        projectors = [load_projector(store, site).dense() for site in sites]
        expected = np.trace(projectors[0] @ projectors[1]) / min(np.trace(projectors[0]), np.trace(projectors[1]))
        assert of.overlap[0, 1] == pytest.approx(expected, abs=1e-9)
        sizes = [np.trace(projector) / of.dim for projector in projectors]
        pairs = [max(one, other) for i, one in enumerate(sizes) for other in sizes[:i]]
        assert of.chance == pytest.approx(np.mean(pairs), abs=1e-9)
