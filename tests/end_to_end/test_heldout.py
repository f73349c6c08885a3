"""Held-out prompts: collected along the same path into a store of their own, and used to measure leakage only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.stages import execute as execute_stage
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.progress import Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.knowledge import HELDOUT_SEED, heldout_config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, prompts_of, small_config, states_of

HELDOUT = ["a white ring on a pink background", "a gray cross at the right of a cyan background", "a black star"]
TINY = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 2, "original_knowledge_prompts": PROMPTS[:4]}
COMPLETE = dict.fromkeys(("schedule", "collect", "covariance", "project"), "complete")


def with_heldout(place: Path, **changes: Any) -> Config:
    return small_config(place, **{**TINY, "heldout_prompts": HELDOUT, **changes})


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    config = with_heldout(tmp_path_factory.mktemp("held") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")


def assert_same_moments(one: Store, other: Store, tolerance: float = 1e-4) -> None:
    assert one.sites == other.sites
    for site in one.sites:
        for t in range(site.num_recorded(4)):
            mine, theirs = one.moments.read_one(site, t), other.moments.read_one(site, t)
            assert mine[2] == theirs[2]
            np.testing.assert_allclose(mine[0], theirs[0], rtol=tolerance, atol=tolerance * np.abs(theirs[0]).max())


def inner_of(store: Store) -> Store:
    inner = store.heldout()
    assert inner is not None
    return inner


def test_they_are_collected_as_if_they_were_a_collection_of_their_own(held: Any, tmp_path: Path) -> None:
    config, store = held
    alone = small_config(
        tmp_path / "alone.zarr", **{**TINY, "original_knowledge_prompts": HELDOUT, "collect__seed": HELDOUT_SEED}
    )
    assert_same_moments(inner_of(store), execute(alone, "collect", "covariance"))
    assert states_of(config) == COMPLETE


def test_they_start_from_noise_of_their_own() -> None:
    """torch's generators take the low 32 bits of a seed: a larger distance would be none."""
    kept, held_out = (torch.randn(8, generator=torch.Generator("cpu").manual_seed(seed)) for seed in (7, 7 + HELDOUT_SEED))
    assert not torch.equal(kept, held_out)


def test_they_change_nothing_of_what_is_kept(held: Any, tmp_path: Path) -> None:
    _, store = held
    without = small_config(tmp_path / "without.zarr", **TINY)
    other = execute(without, "collect", "covariance", "project")
    assert_same_moments(store, other)
    for site in store.sites:
        mine, theirs = store.projectors.read_cut(site, 0), other.projectors.read_cut(site, 0)
        assert mine.null_dim == theirs.null_dim
        assert mine.leakage == pytest.approx(theirs.leakage, rel=1e-3)
        assert mine.heldout_leakage is not None
        assert theirs.heldout_leakage is None


def test_their_leakage_is_the_one_of_plain_numpy(held: Any) -> None:
    _, store = held
    inner = inner_of(store)
    for site in store.sites:
        cut = store.projectors.read_cut(site, 0)
        basis = store.projectors.read_eigenvectors(site, 0)[:, : cut.null_dim]
        known = sum(inner.moments.read_one(site, t)[0] for t in range(site.num_recorded(4)))
        expected = np.sqrt(np.trace(basis @ basis.T @ known @ basis @ basis.T) / np.trace(known))
        assert cut.heldout_leakage == pytest.approx(expected, rel=1e-9)
        assert cut.heldout_leakage > cut.leakage  # four prompts do not stand for all


def test_target_leakage_is_held_on_the_heldout_prompts(held: Any) -> None:
    config, store = held
    values = np.array([store.projectors.read_cut(site, 0).heldout_leakage for site in store.sites])
    bound = 1.001 * float(np.median(values))
    spectra = {}
    for site in store.sites:
        [(_, vectors)] = eigh([second_moment(pooled(store, site, range(site.num_recorded(4))))])
        moment = second_moment(pooled(inner_of(store), site, range(site.num_recorded(4))))
        spectra[site] = np.sqrt(np.cumsum(np.diag(vectors.T @ moment @ vectors)) / np.trace(moment))
    other = config.model_copy(
        update={"project": config.project.model_copy(update={"relative_threshold": None, "target_leakage": bound})}
    )
    execute(other, "project", store=store, force=True)
    try:
        for site in store.sites:
            cut = store.projectors.read_cut(site, 0)
            assert cut.heldout_leakage is not None
            assert cut.heldout_leakage <= bound
            assert cut.null_dim == (spectra[site] <= bound).sum()
    finally:
        execute(config, "project", store=store, force=True)


def test_a_prompt_cannot_be_kept_and_held_out(tmp_path: Path) -> None:
    config = with_heldout(tmp_path / "run.zarr", heldout_prompts=[*HELDOUT, PROMPTS[0]])
    with pytest.raises(ConfigError, match="1 of the held-out prompts are also preserved, such as 'a red circle"):
        execute(config, "collect")


class TestStates:
    def test_they_can_come_later_without_collecting_again(self, tmp_path: Path) -> None:
        without = small_config(tmp_path / "run.zarr", **TINY)
        store = execute(without, "collect", "covariance", "project")
        features = {path: path.stat().st_mtime_ns for path in (store.path / "features").rglob("c.*")}
        config = with_heldout(tmp_path / "run.zarr")
        assert states_of(config) == {"schedule": "complete", "collect": "partial", "covariance": "partial", "project": "stale"}
        with pytest.raises(StageError, match="held-out prompts 0 of 2 units"):
            execute(config, "covariance", store=store)
        execute(config, "collect", store=store)
        assert {path: path.stat().st_mtime_ns for path in (store.path / "features").rglob("c.*")} == features
        assert states_of(config) == {**COMPLETE, "project": "stale"}
        execute(config, "project", store=store, force=True)
        assert states_of(config) == COMPLETE
        assert all(store.projectors.read_cut(site, 0).heldout_leakage is not None for site in store.sites)
        # Not asked for any more: they are not looked at.
        assert states_of(without) == {**COMPLETE, "project": "stale"}
        execute(without, "project", store=store, force=True)
        assert all(store.projectors.read_cut(site, 0).heldout_leakage is None for site in store.sites)

    def test_others_need_force_and_replace_only_themselves(self, tmp_path: Path) -> None:
        config = with_heldout(tmp_path / "run.zarr")
        store = execute(config, "collect", "covariance", "project")
        features = {path: path.stat().st_mtime_ns for path in (store.path / "features").rglob("c.*")}
        other = with_heldout(tmp_path / "run.zarr", heldout_prompts=HELDOUT[:2])
        found = stage_states(other, prompts_of(other), store)
        assert {name: state.state for name, state in found.items()} == {
            **dict.fromkeys(COMPLETE, "stale"),
            "schedule": "complete",
        }
        assert found["collect"].stale_because[0].field == "heldout_prompts"
        with pytest.raises(StageError, match="heldout_prompts"):
            execute(other, "collect", store=store)
        execute(other, "collect", store=store, force=True)
        execute(other, "project", store=store, force=True)
        assert {path: path.stat().st_mtime_ns for path in (store.path / "features").rglob("c.*")} == features
        assert states_of(other) == COMPLETE
        assert [prompt.text for prompt in inner_of(store).prompts()] == HELDOUT[:2]

    def test_a_setting_that_changes_the_path_changes_theirs(self, held: Any, tmp_path: Path) -> None:
        config = with_heldout(tmp_path / "run.zarr")
        store = execute(config, "collect", "covariance")
        other = with_heldout(tmp_path / "run.zarr", collect__guidance_scale=2.0)
        execute(other, "collect", "covariance", store=store, force=True)
        assert states_of(other)["covariance"] == "complete"
        inner = inner_of(store)
        assert inner.config["collect"]["guidance_scale"] == 2.0
        first = inner.sites[0]
        assert not np.allclose(inner.moments.read_one(first, 1)[0], inner_of(held[1]).moments.read_one(first, 1)[0], rtol=1e-3)

    def test_a_fresh_schedule_is_theirs_too(self, tmp_path: Path) -> None:
        config = with_heldout(
            tmp_path / "run.zarr", schedule__sampler_strategy="DPM++ 3M SDE Karras", schedule__num_denoising_steps=4
        )
        store = execute(config, "collect", "covariance")
        assert inner_of(store).schedule() == store.schedule()
        execute(config, "schedule", store=store, force=True)
        execute(config, "collect", store=store, force=True)
        assert inner_of(store).schedule() == store.schedule()
        assert states_of(config)["collect"] == "complete"


def test_stopped_between_the_two_it_goes_on(tmp_path: Path, held: Any) -> None:
    config = with_heldout(tmp_path / "run.zarr")
    store = execute(config, "collect", limit=1)
    assert store.heldout() is None
    execute(config, "collect", store=store, limit=2)
    assert states_of(config)["collect"] == "partial"
    execute(config, "collect", store=store, limit=1)
    assert int(inner_of(store).progress.done("collect").sum()) == 1
    with store.lock():
        for _ in execute_stage("collect", Run(config=config, prompts=prompts_of(config), store=store, device="cpu")):
            pass
    execute(config, "covariance", store=store)
    assert_same_moments(inner_of(store), inner_of(held[1]))


def test_a_damaged_part_is_found_and_mended(tmp_path: Path, held: Any) -> None:
    config = with_heldout(tmp_path / "run.zarr")
    store = execute(config, "collect", "covariance")
    chunk = next((store.path / "heldout/moments").rglob("sum_xxT/c.*"))
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    execute(config, "covariance", store=store, repair=True)
    assert_same_moments(inner_of(store), inner_of(held[1]))


def test_moments_alone_and_several_notes(tmp_path: Path, held: Any) -> None:
    config = with_heldout(tmp_path / "run.zarr", collect__keep="moments")
    store = Store.open_or_create(config.store, config.model_dump())
    with store.lock():
        said = list(execute_stage("collect", Run(config=config, prompts=prompts_of(config), store=store, device="cpu")))
    assert {event.stage for event in said if not isinstance(event, Note)} == {"schedule", "collect", "held-out", "covariance"}
    assert states_of(config)["covariance"] == "complete"
    assert_same_moments(store, held[1])
    assert_same_moments(inner_of(store), inner_of(held[1]))
    assert heldout_config(config).collect.seed == config.collect.seed + HELDOUT_SEED
