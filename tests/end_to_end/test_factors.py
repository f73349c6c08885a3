"""Runs whose wide moments are kept as factors: all that reads moments, beside the same run with whole ones."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.datatypes import FactoredSums, Sums
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.weight_drift import Weights, weight_drifts
from nullbooth_cli.nullspace.export import export_folder, export_safetensors
from nullbooth_cli.nullspace.pooling import moment_of, pooled
from nullbooth_cli.nullspace.projector import leakage_on, overlap, relative_drift
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline import merge
from nullbooth_cli.pipeline.import_moments import import_covariances
from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.report.compare_stores import compare_stores
from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.report.ladder import explore_thresholds
from nullbooth_cli.report.over_timesteps import over_timesteps
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store
from nullbooth_cli.store.verify import Damage, run_checks
from tests.support.builders import MID, PROMPTS, execute, project_again, prompts_of, small_config, states_of
from tests.support.tiny_training import WEIGHTS, adamw, fresh_unet, train, trainable

CPU = torch.device("cpu")
RANK = 24
FACTORS = {"covariance__factor_above": 32, "covariance__factor_rank": RANK}
HELDOUT = ["a white ring on a pink background", "a black star"]
Made = tuple[Config, Store]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = small_config(tmp_path_factory.mktemp("whole") / "run.zarr", **MID, heldout_prompts=HELDOUT)
    return config, execute(config, "collect", "covariance", "project")


@pytest.fixture(scope="module")
def factored(tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = small_config(tmp_path_factory.mktemp("factored") / "run.zarr", **MID, **FACTORS, heldout_prompts=HELDOUT)
    return config, execute(config, "collect", "covariance", "project")


def assert_within(found: Store, expected: Store) -> None:
    """Counts, traces and means are the same; what a factor lacks is within its delta."""
    for site, of_whole in zip(found.sites, expected.sites, strict=True):
        for t in range(site.num_recorded(found.num_steps)):
            sums, exact = found.moments.read_one(site, t), expected.moments.read_one(of_whole, t)
            assert isinstance(sums, FactoredSums)
            assert isinstance(exact, Sums)
            assert sums.factor.shape == (RANK, site.dim)
            assert sums.count == exact.count
            assert sums.trace == pytest.approx(np.trace(exact.sum_xxt), rel=1e-6)
            np.testing.assert_allclose(sums.sum_x, exact.sum_x, atol=1e-5 * np.abs(exact.sum_x).max())
            lost = np.linalg.eigvalsh(exact.sum_xxt - sums.factor.T @ sums.factor)
            assert lost[0] >= -1e-5 * sums.trace
            assert lost[-1] <= sums.delta + 1e-5 * sums.trace


@pytest.mark.parametrize("keep", ["features", "moments", "both"])
def test_moments_of_every_keep_are_within_their_bound(tmp_path: Path, whole: Made, keep: str) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, **FACTORS, collect__keep=keep)
    store = execute(config, "collect", "covariance", "project")
    assert_within(store, whole[1])
    assert set(states_of(config).values()) == {"complete"}
    assert not [
        found for stage in ("collect", "covariance", "project") for found in run_checks(store, stage) if isinstance(found, Damage)
    ]


def test_prompts_are_added_to_factors(tmp_path: Path, whole: Made) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, **FACTORS, original_knowledge_prompts=PROMPTS[:5])
    store = execute(config, "collect", "covariance")
    more = config.model_copy(update={"original_knowledge_prompts": PROMPTS})
    execute(more, "collect", "covariance")
    assert_within(store, whole[1])
    assert not (store.path / "staged").exists()


def test_moments_become_factors_by_force_and_back(tmp_path: Path, whole: Made) -> None:
    shutil.copytree(whole[1].path, tmp_path / "run.zarr")
    data = {**whole[0].model_dump(), "store": str(tmp_path / "run.zarr"), "heldout_prompts": None}
    config = build_config({**data, "covariance": {"factor_above": 32, "factor_rank": RANK}})
    assert states_of(config)["covariance"] == "stale"
    store = execute(config, "covariance", "project", force=True)
    assert_within(store, whole[1])
    execute(build_config(data), "covariance", "project", store=store, force=True)
    for site in store.sites:
        np.testing.assert_array_equal(store.moments.read_one(site, 0)[0], whole[1].moments.read_one(site, 0)[0])


def test_a_projector_leaks_no_more_than_it_says(whole: Made, factored: Made) -> None:
    store, heldout, of_heldout = factored[1], factored[1].heldout(), whole[1].heldout()
    assert heldout is not None
    assert of_heldout is not None
    for site, same in zip(store.sites, whole[1].sites, strict=True):
        projector, cut = load_projector(store, site), store.projectors.read_cut(site, 0)
        assert projector.factor.shape[1] <= RANK
        assert cut.leakage >= leakage_on(projector, moment_of(pooled(whole[1], same))) - 1e-4
        assert cut.heldout_leakage is not None
        assert cut.heldout_leakage >= leakage_on(projector, moment_of(pooled(of_heldout, same))) - 1e-4
        # At this threshold all preserved directions are known well.
        assert overlap(projector, load_projector(whole[1], same)) > 0.99


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("relative_threshold", 1e-9),
        ("nullspace_threshold", 1e-9),
        ("null_dim", 3),
        ("energy", 1.0),
        ("threshold_percent", 5.0),
        ("target_leakage", 1e-9),
    ],
)
def test_a_rule_that_asks_more_than_a_factor_has_is_refused(tmp_path: Path, factored: Made, rule: str, value: float) -> None:
    """Once for all sites, with the value that serves every one; a hair beyond it does not."""
    shutil.copytree(factored[1].path, tmp_path / "run.zarr")
    config, store = (
        factored[0].model_copy(update={"store": str(tmp_path / "run.zarr")}),
        Store.open(tmp_path / "run.zarr", write=True),
    )
    wide = [site for site in store.sites if site.dim > 32]
    with pytest.raises(ConfigError, match=rf"{rule} \S+ is too \w+ for the factors of \d of {len(store.sites)} sites") as error:
        project_again(config, store, **{rule: value})
    assert any(f"the worst of {site.name}: a factor" in error.value.message for site in wide)
    found = re.fullmatch(rf"set project\.{rule} to (\S+) or (more|less), raise covariance\.factor_rank, or .*", error.value.hint)
    assert found is not None
    allowed = int(found[1]) if rule == "null_dim" else float(found[1])
    beyond = {"null_dim": allowed - 1, "energy": min(1.03 * allowed, 1.0)}.get(rule, 0.97 * allowed)
    with pytest.raises(ConfigError, match=rf"the factors of \d of {len(store.sites)} sites"):
        project_again(config, store, **{rule: beyond})
    project_again(config, store, **{rule: allowed})
    assert all(store.projectors.read_cut(site, 0).null_dim >= site.dim - RANK for site in wide)


def test_energy_counts_the_whole_trace(tmp_path: Path, whole: Made, factored: Made) -> None:
    """Half of the energy is in few directions; what the factor lacks counts as lying outside of them."""
    dims = []
    for name, (config, store) in (("w", whole), ("f", factored)):
        shutil.copytree(store.path, tmp_path / name)
        copy = Store.open(tmp_path / name, write=True)
        project_again(config.model_copy(update={"store": str(tmp_path / name)}), copy, energy=0.5)
        dims.append([copy.projectors.read_cut(site, 0).null_dim for site in copy.sites])
        assert all(copy.projectors.read_cut(site, 0).leakage <= 0.5**0.5 for site in copy.sites)
    assert all(of_factor <= of_whole for of_whole, of_factor in zip(*dims, strict=True))


def test_everything_that_reads_moments_reads_factors(tmp_path: Path, whole: Made, factored: Made) -> None:
    config, store = factored
    ladder = explore_thresholds(config, store, CPU)
    assert ladder.in_force.below_noise == 0
    assert ladder.ladder[0].below_noise > 0
    report = inspect_store(config, store)
    for site, exact in zip(report.sites, inspect_store(*whole).sites, strict=True):
        assert site.smallest == 0.0
        assert exact.leakage <= site.leakage <= 1.5 * exact.leakage
    compared = compare_stores(config, store, whole[0], whole[1], store.sites)
    assert compared.totals.mean_overlap > 0.99
    for site, exact in zip(compared.sites, inspect_store(*whole).sites, strict=True):
        assert site.leakage_on_the_other[1] >= exact.leakage - 1e-4
    for site in over_timesteps(store, CPU, config, store.sites):
        assert site.null_dim.min() >= site.site.dim - RANK
    moment = nb.open_store(store.path).moment(store.sites[0])
    assert moment.is_factored
    assert moment.second_moment.shape == (moment.dim, moment.dim)
    export_safetensors(store, tmp_path / "p.safetensors", dense=False, dtype="float32")
    with pytest.raises(ConfigError, match="is kept as a factor of 24: it has no") as error:
        export_folder(store, decomposition_of(config, store), tmp_path / "out", rule="energy", value=0.5, only_covariance=True)
    assert "safetensors" in error.value.hint
    assert not list((tmp_path / "out").glob("*"))


def test_plans_count_factors(whole: Made, factored: Made) -> None:
    size = {}
    for name, (config, store) in (("whole", whole), ("factored", factored)):
        alone = config.model_copy(update={"heldout_prompts": None, "store": "elsewhere"})
        size[name] = {
            found.stage: found.bytes_needed
            for found in plan(("collect", "covariance", "project"), alone, prompts_of(alone), None)
        }
        written = {"covariance": store.nbytes("moments"), "project": store.nbytes("projectors")}
        for stage, nbytes in written.items():
            assert size[name][stage] == pytest.approx(nbytes, rel=0.3)
    assert size["factored"]["covariance"] < 0.5 * size["whole"]["covariance"]
    assert size["factored"]["project"] < 0.5 * size["whole"]["project"]


def test_drift_of_a_constrained_model_is_the_most_that_it_can_be(whole: Made, factored: Made) -> None:
    unet = fresh_unet()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    constraint = nb.constrain(unet, nb.open_store(factored[1].path))
    train(unet, adamw(trainable(unet)), range(3))
    drifts = constraint.drift()
    base, after = (
        Weights({}, {name: tensors[name].detach().numpy() for name in WEIGHTS}) for tensors in (before, unet.state_dict())
    )
    [said] = weight_drifts(factored[1], factored[1].heldout(), base, [after])
    for site in whole[1].sites:
        exact = moment_of(pooled(whole[1], site))
        for name in site.weights:
            true = relative_drift(after.protected[name] - base.protected[name], base.protected[name], exact)
            assert true <= drifts[name] * 1.001
            assert drifts[name] == pytest.approx(next(each.drift for each in said.weights if each.weight == name), rel=1e-3)


def test_stores_of_factors_are_merged(tmp_path: Path, whole: Made) -> None:
    def part(name: str, prompts: list[str], **changes: object) -> Store:
        config = small_config(tmp_path / name, **{**MID, **FACTORS, "original_knowledge_prompts": prompts, **changes})
        return execute(config, "collect", "covariance")

    one, two = part("a.zarr", PROMPTS[:3]), part("b.zarr", PROMPTS[3:], collect__keep="moments")
    out = Store.create(tmp_path / "all.zarr", one.config)
    assert [*merge.merge([one, two], out)]
    for number, site in enumerate(out.sites):
        a, b = (store.moments.read_one(store.sites[number], 0) for store in (one, two))
        assert isinstance(a, FactoredSums)
        assert isinstance(b, FactoredSums)
        found = out.moments.read_one(site, 0)
        assert isinstance(found, FactoredSums)
        assert found.count == a.count + b.count
        assert found.trace == pytest.approx(a.trace + b.trace)
        lost = np.linalg.eigvalsh(a.factor.T @ a.factor + b.factor.T @ b.factor - found.factor.T @ found.factor)
        assert -1e-9 * found.trace <= lost[0] <= lost[-1] <= found.delta - a.delta - b.delta + 1e-9 * found.trace
    execute(build_config(out.config), "project")
    other_rank = part("c.zarr", HELDOUT, covariance__factor_rank=16)
    no_factors = part("d.zarr", ["a black ring"], covariance__factor_above=None)
    with pytest.raises(ConfigError, match=r"covariance\.factor_rank: 24 in .*a\.zarr, 16 in .*c\.zarr"):
        merge.check_mergeable([one, other_rank])
    with pytest.raises(ConfigError, match=r"covariance\.factor_above: 32 in .*a\.zarr, None in .*d\.zarr"):
        merge.check_mergeable([one, no_factors])


def test_imported_moments_stay_whole(tmp_path: Path, whole: Made) -> None:
    config, store = whole
    folder = export_folder(store, decomposition_of(config, store), tmp_path, rule="energy", value=0.5, only_covariance=True)
    out = Store.create(tmp_path / "imported.zarr", config.model_dump())
    wanted = small_config(tmp_path / "imported.zarr", **FACTORS)
    assert [*import_covariances(folder, out, wanted)]
    assert out.moments.rows(out.sites[0]) == out.sites[0].dim
    assert isinstance(out.moments.read_one(out.sites[0], 0), Sums)


def test_centred_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="centred is true, and a factor of a moment is about zero"):
        build_config({"covariance": {"centred": True, "factor_above": 32}})
