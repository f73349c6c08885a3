"""Which threshold lets an edit reach its targets: cuts of the stored decomposition, and each pair by itself, in plain numpy."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.editing import methods as methods_module
from nullbooth_cli.editing import problem as problem_module
from nullbooth_cli.editing.edit import edit_problem, plan_edit, text_sites
from nullbooth_cli.editing.problem import Problem
from nullbooth_cli.editing.reach import CutStore, thresholds
from nullbooth_cli.editing.report import EditPlan
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
def problem(store: nb.OpenStore) -> Problem:
    return edit_problem(toy(), store, PAIRS, tokens="all")


@pytest.fixture(scope="module")
def plan(problem: Problem) -> EditPlan:
    return problem.solve()


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


def test_the_missing_of_a_pair_is_that_of_its_own_rows(store: nb.OpenStore, plan: EditPlan) -> None:
    (site,) = text_sites(store)
    found, worst = plan.report.by_pair, dict.fromkeys(PAIRS, 0.0)
    keys, wanted = plan.report.keys[site.name], plan.wanted[site.name]
    assert len(keys) == 2 * 16
    for name in site.weights:
        w, after = plan.denoiser.get_parameter(name).double().numpy(), plan.after[name].double().numpy()
        for i, source in enumerate(PAIRS):
            k, r = keys[16 * i : 16 * i + 16], wanted[16 * i : 16 * i + 16] @ w.T
            worst[source] = max(worst[source], float(np.linalg.norm(k @ (after - w).T - r) / np.linalg.norm(r)))
    assert found == pytest.approx(worst)
    new, known = found.values()
    assert known > new, "the second source is one of the preserved prompts"


@pytest.mark.parametrize("method", ["alphaedit", "speed", "ace"])
def test_the_ladder_is_of_its_own_method_and_runs_no_prompt_again(
    store: nb.OpenStore, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each rung is the edit that a store cut there would give."""
    how: dict[str, Any] = {"method": method, "prompts": 4, "noise": 2}
    problem = edit_problem(toy(), store, PAIRS, **how)
    plan = problem.solve()
    with monkeypatch.context() as once:
        for module in (problem_module, methods_module):
            once.setattr(module, "text_inputs", None)
        *rungs, by_uce = thresholds(problem, plan)
    (site,) = text_sites(store)
    dims = [rung.null_dim for rung in rungs]
    assert dims == sorted(set(dims))
    assert dims[0] is not None
    assert dims[0] > store.projector(site).null_dim
    assert (by_uce.method, by_uce.relative_threshold, by_uce.null_dim) == ("uce", None, None)
    assert {rung.method for rung in rungs} == {method}
    assert all(rung.missing > 0.6 or (rung.elsewhere or 0) > 0.6 for rung in rungs[:-1]), "none of them reaches every target"
    assert rungs[0].missing > rungs[-1].missing
    last = rungs[-1]
    shutil.copytree(store.url, tmp_path / "run.zarr")
    config = store.config.model_dump() | {"store": str(tmp_path / "run.zarr")}
    config["project"] |= {"relative_threshold": last.relative_threshold}
    again = plan_edit(toy(), nb.run(config, stages=["project"], force=True, device="cpu"), PAIRS, **how).report
    assert last.missing == pytest.approx(max(again.by_pair.values()))
    assert (last.drift, last.heldout) == pytest.approx((again.drift, again.heldout))


def test_uce_has_no_ladder(store: nb.OpenStore) -> None:
    problem = edit_problem(toy(), store, {"a sks": "a red star"}, method="uce")
    assert thresholds(problem, problem.solve()) == ()


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
