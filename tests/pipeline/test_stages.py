"""Stages: what makes which of them stale, and that stopping at any moment changes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nullbooth_cli.errors import ConfigError, Rerun, ResourceError, StageError
from nullbooth_cli.nullspace.pooling import pooled
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.pipeline import run, stages
from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.progress import Note, Progress
from nullbooth_cli.settings.config import STAGES, Config, build_config
from nullbooth_cli.store import Store
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import PROMPTS, ROOT, execute, prompts_of, small_config, states_of
from tests.support.cli import start

TINY = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 2}


def changed(config: Config, **changes: Any) -> Config:
    data = config.model_dump()
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[last] = value
    return build_config(data)


def stale_stages(config: Config, store: Store) -> set[str]:
    found = stage_states(config, prompts_of(config), store)
    assert {state.state for state in found.values()} <= {"complete", "stale"}
    return {name for name, state in found.items() if state.state == "stale"}


ALL, COLLECT_ON, COVARIANCE_ON, PROJECT_ON = (set(STAGES[i:]) for i in range(4))
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"model": "./other"}, set()),
    ({"revision": "main"}, set()),
    ({"variant": "fp16"}, set()),
    ({"pipeline_config": "./other"}, set()),
    ({"allow_pickle": True}, set()),
    ({"model_cpu_offload": True}, set()),
    ({"attention_slicing": True}, set()),
    ({"schedule__num_denoising_steps": 5}, ALL),
    ({"schedule__sampler_strategy": "Euler"}, ALL),
    ({"schedule__timestep_mode": "first"}, ALL),
    ({"schedule__timestep_spacing": "leading"}, ALL),
    ({"schedule__sde_jitter": 0.1}, ALL),
    ({"schedule__seed": 1}, ALL),
    ({"dtype": "bfloat16"}, COLLECT_ON),
    ({"original_knowledge_prompts": PROMPTS[:7]}, COLLECT_ON),
    ({"original_knowledge_prompts": PROMPTS[::-1]}, set()),
    ({"collect__collect_features__q_features": False}, COLLECT_ON),
    ({"collect__collect_features__k_features": False}, COLLECT_ON),
    ({"collect__collect_features__v_features": False}, COLLECT_ON),
    ({"collect__collect_features__out_features": False}, COLLECT_ON),
    ({"collect__cross_attention_layers": [0]}, COLLECT_ON),
    ({"collect__side": "output"}, COLLECT_ON),
    ({"collect__guidance_scale": 5.0}, COLLECT_ON),
    ({"collect__branches": "cond"}, COLLECT_ON),
    ({"collect__height": 32}, COLLECT_ON),
    ({"collect__width": 32}, COLLECT_ON),
    ({"collect__seed": 1}, COLLECT_ON),
    ({"collect__feature_dtype": "float16"}, COLLECT_ON),
    ({"covariance__accumulate": "float32"}, COVARIANCE_ON),
    ({"covariance__centred": True}, PROJECT_ON),
    ({"project__scope": "timestep"}, PROJECT_ON),
    ({"project__relative_threshold": 0.1}, PROJECT_ON),
    ({"project__timesteps": [0.0, 500.0]}, PROJECT_ON),
    ({"project__pool_weight": "timestep"}, PROJECT_ON),
    ({"project__empty": "freeze"}, PROJECT_ON),
    ({"project__relative_threshold": None, "project__energy": 0.9}, PROJECT_ON),
    ({"collect__batch_size": 8}, set()),
    ({"collect__compression": "lz4"}, set()),
    ({"local_files_only": True}, set()),
    ({"store": "elsewhere"}, set()),
    ({"collect__keep": "moments"}, set()),
    ({"collect__tokens_per_prompt": 2}, COLLECT_ON),
    ({"storage_options": {"region": "x"}}, set()),
    ({"collect__latents": "images", "collect__images": str(ROOT / "dataset/images/toy")}, COLLECT_ON),
    ({"collect__visual_attention_map": True}, set()),
    ({"collect__attention_prompts": 3}, set()),
    ({"collect__attention_layers": [0]}, set()),
    ({"collect__attention_timesteps": 3}, set()),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=[next(iter(changes)) for changes, _ in CHANGES])
def test_a_setting_makes_exactly_the_right_stages_stale(finished: Any, changes: dict[str, Any], expected: set[str]) -> None:
    config, store = finished
    assert stale_stages(changed(config, **changes), store) == expected


def test_every_setting_is_among_the_changes() -> None:
    """A new key without a row above fails here."""
    leaves = _leaves(Config().model_dump()) | {"storage_options"}
    rules = {f"project.{name}" for name in ("nullspace_threshold", "threshold_percent", "target_leakage", "null_dim")}
    assert leaves - rules - {"heldout_prompts"} == {key.replace("__", ".") for changes, _ in CHANGES for key in changes}


def _leaves(data: Any, prefix: str = "") -> set[str]:
    if not isinstance(data, dict):
        return {prefix[1:]}
    return set().union(*(_leaves(value, f"{prefix}.{key}") for key, value in data.items()))


def test_the_reason_names_field_old_and_new(finished: Any) -> None:
    config, store = finished
    found = stage_states(changed(config, collect__guidance_scale=5.0), prompts_of(config), store)
    assert [str(because) for because in found["collect"].stale_because] == ["collect.guidance_scale: 4.0 -> 5.0"]
    assert found["covariance"].stale_because[0].field == "collect"


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Config, Store]:
    config = small_config(tmp_path / "run.zarr", **TINY)
    return config, execute(config, "collect", "covariance", "project")


def events(config: Config, store: Store, stage: str, **control: Any) -> list:
    with store.lock():
        return list(
            stages.execute(stage, run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu", **control))
        )


def test_collect_writes_the_schedule_first(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    execute(config, "collect")
    assert states_of(config) == {"schedule": "complete", "collect": "complete", "covariance": "missing", "project": "missing"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_complete_stage_says_so_and_does_nothing(tiny: Any, stage: str) -> None:
    config, store = tiny
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    said = events(config, store, stage)
    assert len(said) == 1
    assert isinstance(said[0], Note)
    assert f"{stage} is complete" in said[0].text
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_a_stale_stage_is_refused_and_loses_nothing(tiny: Any) -> None:
    config, store = tiny
    other = changed(config, collect__guidance_scale=5.0)
    with pytest.raises(StageError, match=r"collect\.guidance_scale: 4\.0 -> 5\.0") as caught:
        events(other, store, "collect")
    assert caught.value.rerun == Rerun("collect", force=True, otherwise=caught.value.rerun.otherwise)
    assert "to replace its" in caught.value.hint
    with pytest.raises(StageError, match=r"collect in .* is stale"):
        events(other, store, "covariance")
    assert set(states_of(config).values()) == {"complete"}
    events(other, store, "collect", force=True)
    assert states_of(other) == {"schedule": "complete", "collect": "complete", "covariance": "stale", "project": "stale"}


@pytest.mark.parametrize(("stage", "needs"), [("covariance", "schedule"), ("project", "schedule")])
def test_a_stage_out_of_order(tmp_path: Path, stage: str, needs: str) -> None:
    config = small_config(tmp_path / "run.zarr")
    with pytest.raises(StageError, match=f"{needs} in .* is missing") as caught:
        execute(config, stage)
    assert caught.value.rerun == Rerun(needs, otherwise=" first, with the same options")


def test_limit_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    assert states_of(config)["collect"] == "partial"
    with pytest.raises(StageError, match=r"collect in .* is partial: 1 of 4 units"):
        events(config, store, "covariance")
    rest = [event for event in events(config, store, "collect") if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in rest] == [(2, 4), (3, 4), (4, 4)]


def test_the_unit_size_may_change_until_something_is_collected(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    said = events(changed(config, collect__batch_size=8), store, "collect")
    assert any(isinstance(event, Note) and "batch_size stays 2" in event.text for event in said)
    assert states_of(config)["collect"] == "complete"


def test_a_changed_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    monkeypatch.setattr("nullbooth_cli.model.load.weights_digest", lambda pipe, **_: "another")
    with pytest.raises(StageError, match=r"weights .* -> another"):
        events(config, store, "collect")


def test_another_threshold_only_cuts_again(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = tiny
    before = {site: store.projectors.read_cut(site, 0) for site in store.sites}
    monkeypatch.setattr("nullbooth_cli.nullspace.decompose.eigh", lambda *_: pytest.fail("decomposed again"))
    events(changed(config, project__relative_threshold=0.5), store, "project", force=True)
    after = {site: store.projectors.read_cut(site, 0) for site in store.sites}
    assert all(after[site][0] >= before[site][0] for site in store.sites)
    assert after != before


def test_an_empty_null_space_names_the_site_and_keeps_the_decomposition(tiny: Any) -> None:
    config, store = tiny
    with pytest.raises(ConfigError, match=r"the null space of mid_block.*is empty under relative_threshold 1e-09"):
        events(changed(config, project__relative_threshold=1e-9), store, "project", force=True)
    events(config, store, "project", force=True)
    assert set(states_of(config).values()) == {"complete"}


def test_an_empty_null_space_may_freeze_its_site(tiny: Any) -> None:
    config, store = tiny
    frozen = changed(config, project__relative_threshold=1e-9, project__empty="freeze")
    events(frozen, store, "project", force=True)
    assert set(states_of(frozen).values()) == {"complete"}
    sizes = {site: store.projectors.read_cut(site, 0).null_dim for site in store.sites}
    assert min(sizes.values()) == 0 < max(sizes.values())
    [empty, *_] = [site for site, size in sizes.items() if size == 0]
    assert not load_projector(store, empty).dense().any()
    assert store.projectors.read_cut(empty, 0).leakage == 0.0


def test_both_thresholds_are_announced(tiny: Any) -> None:
    config, store = tiny
    both = changed(config, project__relative_threshold=None, project__nullspace_threshold=0.1, project__threshold_percent=50.0)
    assert any(
        "the percentile is in force" in event.text
        for event in events(both, store, "project", force=True)
        if isinstance(event, Note)
    )


def test_per_timestep_scope(tiny: Any) -> None:
    config, store = tiny
    events(changed(config, project__scope="timestep"), store, "project", force=True)
    for site in store.sites:
        cuts = [store.projectors.read_cut(site, t) for t in range(1 if site.timestep_free else 4)]
        for t, (null_dim, leakage, _) in enumerate(cuts):
            sum_xxt, _, count = store.moments.read_one(site, t)
            eigenvalues = np.linalg.eigvalsh(sum_xxt / count)
            assert null_dim == (eigenvalues < 0.05 * eigenvalues[-1]).sum()
            assert leakage == pytest.approx(np.sqrt(eigenvalues[:null_dim].sum() / eigenvalues.sum()), abs=1e-9)


def test_centred_leakage_is_measured_about_zero(tiny: Any) -> None:
    config, store = tiny
    events(changed(config, covariance__centred=True), store, "project", force=True)
    for site in store.sites:
        sum_xxt, _, _ = pooled(store, site, range(site.num_recorded(4)))
        null_dim, leakage, _ = store.projectors.read_cut(site, 0)
        basis = store.projectors.read_eigenvectors(site, 0)[:, :null_dim]
        assert leakage == pytest.approx(np.sqrt(np.trace(basis.T @ sum_xxt @ basis) / np.trace(sum_xxt)), rel=1e-6)


def test_no_room_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    execute(config, "schedule")
    monkeypatch.setattr(LocalBacking, "free_nbytes", lambda self: 1000)
    with pytest.raises(ResourceError, match="1,000 are free"):
        execute(config, "collect")
    assert states_of(config)["collect"] == "missing"


def test_the_planned_bytes_are_the_written_bytes(tmp_path: Path, tiny: Any) -> None:
    _, store = tiny
    fresh = small_config(tmp_path / "fresh.zarr", **TINY)
    planned = {p.stage: p for p in plan(STAGES, fresh, prompts_of(fresh), None, device="cpu")}
    for stage, folder in (("collect", "features"), ("covariance", "moments"), ("project", "projectors")):
        assert planned[stage].units_total == len(store.progress.done(stage))
        # Metadata, checksums and counts come on top.
        assert 0 <= store.nbytes(folder) - planned[stage].bytes_needed < 0.35 * planned[stage].bytes_needed + 60_000
    assert not Path(fresh.store).exists()


class TestKilled:
    """Processes that are stopped: whatever the moment, the same command finishes and the result is the uninterrupted one."""

    def command(self, tmp_path: Path) -> tuple[list[str], Config]:
        config = small_config(tmp_path / "killed.zarr", **TINY)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        return [sys.executable, "-m", "nullbooth_cli", "run", "-c", str(tmp_path / "c.yaml")], config

    def test_ctrl_c_exits_130_and_keeps_finished_units(self, tmp_path: Path, tiny: Any) -> None:
        command, config = self.command(tmp_path)
        process = start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=1)
        assert process.stderr is not None
        while not process.stderr.readline().startswith("collect 1/"):
            pass
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
        assert "interrupted: finished units are kept" in rest
        assert "Traceback" not in rest
        process.stderr.close()
        assert Store.open(config.store).progress.done("collect")[0]
        self.finish_and_compare(command, config, tiny)

    def finish_and_compare(self, command: list[str], config: Config, tiny: Any) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=False)
        assert done.returncode == 0, done.stderr
        _, expected = tiny
        store = Store.open(config.store)
        assert set(states_of(config).values()) == {"complete"}
        assert not list(store.path.rglob("*.partial"))
        assert store.sites == expected.sites
        for site in store.sites:
            for t in range(1 if site.timestep_free else 4):
                for found, wanted in zip(store.moments.read_one(site, t), expected.moments.read_one(site, t), strict=True):
                    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
            assert store.projectors.read_cut(site, 0)[0] == expected.projectors.read_cut(site, 0)[0]
