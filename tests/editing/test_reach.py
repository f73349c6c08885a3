"""Which threshold lets an edit reach its targets: cuts of the stored decomposition, and each pair by itself, in plain numpy."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.editing.edit import plan_edit, text_sites
from nullbooth_cli.editing.reach import CutStore, Trial
from tests.support.builders import TEXT_ONLY, execute, small_config
from tests.support.edited_models import toy

PAIRS = {"a sks star": "a red star", "a red circle on a blue background": "a green square on a white background"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> nb.OpenStore:
    config = small_config(
        tmp_path_factory.mktemp("reach") / "run.zarr",
        heldout_prompts=["a green ring", "a pink star on a gray background"],
        project__relative_threshold=1e-6,
        collect__keep="moments",
        **TEXT_ONLY,
    )
    return nb.OpenStore(execute(config, "schedule", "collect", "covariance", "project"))


@pytest.fixture(scope="module")
def trial(store: nb.OpenStore) -> Trial:
    pipe = toy()
    return Trial(store, text_sites(store), lambda store, **other: plan_edit(pipe, store, PAIRS, **other))


def test_a_cut_store_cuts_the_stored_decomposition_anew(store: nb.OpenStore) -> None:
    (site,) = text_sites(store)
    moment = store.moment(site).second_moment
    values, vectors = np.linalg.eigh(moment)
    null = vectors[:, values < 1e-2 * values[-1]]
    cut = CutStore(store, 1e-2)
    found = cut.projectors()
    assert found.keys() == store.projectors().keys()
    assert cut.null_dim(site) == null.shape[1] != store.projector(site).null_dim
    np.testing.assert_allclose(found[site.weights[0]].dense(), null @ null.T, atol=1e-8)
    assert (cut.url, cut.moment(site).count) == (store.url, store.moment(site).count)


def test_the_missing_of_a_pair_is_that_of_its_own_rows(store: nb.OpenStore, trial: Trial) -> None:
    (site,) = text_sites(store)
    found, worst = trial.plan.report.by_pair, dict.fromkeys(PAIRS, 0.0)
    keys, wanted = trial.plan.report.keys[site.name], trial.plan.wanted[site.name]
    assert len(keys) == 2 * 16
    for name in site.weights:
        w, after = trial.plan.denoiser.get_parameter(name).double().numpy(), trial.plan.after[name].double().numpy()
        for i, source in enumerate(PAIRS):
            k, r = keys[16 * i : 16 * i + 16], wanted[16 * i : 16 * i + 16] @ w.T
            worst[source] = max(worst[source], float(np.linalg.norm(k @ (after - w).T - r) / np.linalg.norm(r)))
    assert found == pytest.approx(worst)
    new, known = found.values()
    assert known > new, "the second source is one of the preserved prompts"


def test_the_ladder_leaves_ever_more_room_and_ends_with_uce(store: nb.OpenStore, trial: Trial) -> None:
    *rungs, by_uce = trial.thresholds()
    (site,) = text_sites(store)
    dims = [rung.null_dim for rung in rungs]
    assert dims == sorted(set(dims))
    assert dims[0] is not None
    assert dims[0] > store.projector(site).null_dim
    assert [rung.relative_threshold for rung in rungs] == sorted(rung.relative_threshold or 0 for rung in rungs)
    assert (by_uce.method, by_uce.relative_threshold, by_uce.null_dim) == ("uce", None, None)
    pipe = toy()
    for rung in (rungs[0], rungs[-1]):
        at = CutStore(store, rung.relative_threshold or 0)
        again = Trial(at, text_sites(at), partial(_plan, pipe))
        assert rung.missing == pytest.approx(max(again.plan.report.by_pair.values()))
        assert (rung.drift, rung.heldout) == (again.plan.report.drift, again.plan.report.heldout)
    assert rungs[-1].missing < rungs[0].missing
    assert rungs[-1].reaches
    assert not rungs[0].reaches


def _plan(pipe: object, store: nb.OpenStore) -> object:
    return plan_edit(pipe, store, PAIRS)  # type: ignore[arg-type]


def test_uce_has_no_ladder(store: nb.OpenStore) -> None:
    pipe = toy()
    trial = Trial(store, text_sites(store), lambda store: plan_edit(pipe, store, {"a sks": "a red star"}, method="uce"))
    assert trial.thresholds() == ()


def test_the_mean_of_several_targets_is_the_target(store: nb.OpenStore, tmp_path: Path) -> None:
    pipe = toy()
    plans = [
        plan_edit(pipe, store, {"a [sks]": targets}, tokens="subject")
        for targets in (("a red [sks]", "a green [sks]"), "a red [sks]", "a green [sks]")
    ]
    (site,) = text_sites(store)
    both, red, green = (plan.wanted[site.name] for plan in plans)
    np.testing.assert_allclose(both, (red + green) / 2, atol=1e-12)
    for plan in plans:
        np.testing.assert_array_equal(plan.report.keys[site.name], plans[0].report.keys[site.name])
