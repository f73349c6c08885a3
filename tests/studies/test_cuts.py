"""The cuts of the study are what they say, and `nb.constrain` takes them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nullbooth_cli as nb
from docs.studies.cuts import Cut, CutProjectors, most_gain
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject
from nullbooth_cli.training.parametrization import is_constrained
from tests.support.builders import execute, small_config
from tests.support.tiny_training import fresh_unet


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """(preserved prompts, with held-out ones, and the moments of two captions of the subject)."""
    folder = tmp_path_factory.mktemp("known")
    layers = {"collect__cross_attention_layers": ["mid_block*"], "schedule__num_denoising_steps": 2}
    heldout = ["a red ring on a white background", "a blue cross on a black background"]
    config = small_config(folder / "known.zarr", heldout_prompts=heldout, **layers)
    captions = [subject.caption(background) for background in ("white", "black")]
    other = small_config(folder / "subject.zarr", original_knowledge_prompts=captions, **layers)
    one, two = (execute(each, "schedule", "collect", "covariance", "project") for each in (config, other))
    return one, two


def projectors(stores: tuple[Store, Store], way: Any, value: float) -> dict[str, nb.Projector]:
    return CutProjectors(*stores, Cut(way, value)).projectors()


def test_a_relative_cut_is_that_of_project(stores: tuple[Store, Store]) -> None:
    own = nb.open_store(stores[0].path).projectors()
    found = projectors(stores, "relative", 0.05)
    assert found.keys() == own.keys()
    for weight, projector in own.items():
        np.testing.assert_array_equal(found[weight].dense(), projector.dense())


def test_random_directions_are_as_many_and_others(stores: tuple[Store, Store]) -> None:
    own, found = projectors(stores, "relative", 0.05), projectors(stores, "random", 0.05)
    for weight, projector in own.items():
        assert found[weight].null_dim == projector.null_dim
        p = found[weight].dense()
        np.testing.assert_allclose(p @ p, p, atol=1e-12)
        assert np.abs(p - projector.dense()).max() > 0.1


def test_a_soft_cut_scales_each_direction_by_its_eigenvalue(stores: tuple[Store, Store]) -> None:
    store = stores[0]
    found = projectors(stores, "soft", 0.05)
    for site in store.sites:
        values, vectors = store.projectors.read_eigenvalues(site, 0), store.projectors.read_eigenvectors(site, 0)
        share = 0.05 / (0.05 + np.maximum(values, 0) / values[-1])
        np.testing.assert_allclose(found[site.weights[0]].dense(), vectors @ np.diag(share) @ vectors.T, atol=1e-12)


def test_a_leakage_cut_bounds_heldout_energy(stores: tuple[Store, Store]) -> None:
    heldout = stores[0].heldout()
    for weight, projector in projectors(stores, "leakage", 0.1).items():
        site = next(site for site in stores[0].sites if weight in site.weights)
        sum_xxt = sum(heldout.moments.read_one(site, t)[0] for t in range(site.num_recorded(2)))
        assert np.trace(projector.dense() @ sum_xxt) <= 0.01 * np.trace(sum_xxt) * (1 + 1e-9)


def test_a_subject_cut_depends_on_the_subject(stores: tuple[Store, Store]) -> None:
    cheap, dear = projectors(stores, "subject", 0.1), projectors(stores, "subject", 1e6)
    assert all(cheap[weight].null_dim >= dear[weight].null_dim for weight in cheap)
    assert sum(p.null_dim for p in cheap.values()) > sum(p.null_dim for p in dear.values())


energies = arrays(np.float64, 6, elements=st.floats(0.01, 10))


@given(energies, energies, st.floats(0.01, 100))
def test_the_null_space_of_most_gain_is_the_best_of_all_sizes(wanted: Any, heldout: Any, price: float) -> None:
    gains = [wanted[:k].sum() / wanted.sum() - price * heldout[:k].sum() / heldout.sum() for k in range(7)]
    assert gains[most_gain(wanted, heldout, price)] == pytest.approx(max(gains), abs=1e-9)


def test_constrain_takes_them_as_it_takes_a_store(stores: tuple[Store, Store]) -> None:
    cut = CutProjectors(*stores, Cut("leakage", 0.1))
    unet = fresh_unet()
    report = nb.constrain(unet, cut).report()
    assert report.constrained == {weight: (p.null_dim, p.dim) for weight, p in cut.projectors().items()}
    assert all(is_constrained(unet.get_submodule(weight.removesuffix(".weight"))) for weight in report.constrained)
    unet = fresh_unet()
    unet.get_parameter(next(iter(report.constrained))).data *= 1.1
    with pytest.raises(nb.NullboothError, match="another model"):
        nb.constrain(unet, cut)
