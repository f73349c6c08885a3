"""The state of a stage: what makes which of them stale, and what reading it costs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import nullbooth_cli as nb
from nullbooth_cli.cli import app
from nullbooth_cli.errors import Rerun, StageError
from nullbooth_cli.pipeline.state import read_states, require, stage_states
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, ROOT, prompts_of, small_config
from tests.support.counting import Objects, counted
from tests.support.stages import TINY, changed


class TestRequire:
    """The message is about the stage that is asked for, the hint about the first that must run."""

    def refused(self, config: Config, store: Store, stage: str) -> StageError:
        with pytest.raises(StageError) as caught:
            require(stage_states(config, prompts_of(config), store), stage, "run.zarr")
        return caught.value

    def test_the_first_of_several_stale_stages_is_named(self, tiny: tuple[Config, Store]) -> None:
        config, store = tiny
        error = self.refused(changed(config, schedule__num_denoising_steps=5), store, "project")
        assert error.message == (
            "project in run.zarr is stale, and schedule before it is stale\n  schedule.num_denoising_steps: 4 -> 5"
        )
        assert error.rerun == Rerun("schedule", force=True, store="run.zarr")

    def test_missing_and_partial_stages(self, tiny: tuple[Config, Store]) -> None:
        config, store = tiny
        store.write_record("covariance", None)
        error = self.refused(config, store, "project")
        assert error.message.startswith("project in run.zarr is stale, and covariance before it is missing")
        assert error.rerun == Rerun("covariance", store="run.zarr")
        store.progress.mark("collect", [1], 0)
        error = self.refused(config, store, "collect")
        assert error.message == "collect in run.zarr is partial: 3 of 4 units"
        assert error.rerun == Rerun("collect", store="run.zarr")
        require(stage_states(config, prompts_of(config), store), "schedule", "run.zarr")

    def test_rows_that_changed_make_project_stale(self, tiny: tuple[Config, Store]) -> None:
        """The moments are of other rows, though the prompts are the same."""
        config, store = tiny
        record = store.records["covariance"]
        store.write_record("covariance", {**record, "rows": {**record["rows"], "digest": "other"}})
        store.write_record("decomposition", {**store.records["decomposition"], "rows": "these"})
        (because,) = [d for d in stage_states(config, prompts_of(config), store)["project"].stale_because if "rows" in d.old]
        assert str(because) == "original_knowledge_prompts: rows these -> rows other"

    def test_a_long_list_of_removed_prompts_is_short(self, tiny: tuple[Config, Store]) -> None:
        config, store = tiny
        error = self.refused(changed(config, original_knowledge_prompts=PROMPTS[:1]), store, "collect")
        first = ", ".join(repr(text) for text in PROMPTS[1:4])
        assert error.message.endswith(f"1 prompts; removed or edited: {first} and 4 more")


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
    ({"collect__linear_layers": ["ff_in"]}, COLLECT_ON),
    ({"collect__side": "output"}, COLLECT_ON),
    ({"collect__guidance_scale": 5.0}, COLLECT_ON),
    ({"collect__pipeline_inputs": {"negative_prompt": "blurry"}}, COLLECT_ON),
    ({"collect__branches": "cond"}, COLLECT_ON),
    ({"collect__height": 32}, COLLECT_ON),
    ({"collect__width": 32}, COLLECT_ON),
    ({"collect__seed": 1}, COLLECT_ON),
    ({"collect__feature_dtype": "float16"}, COLLECT_ON),
    ({"covariance__accumulate": "float32"}, COVARIANCE_ON),
    ({"covariance__centred": True}, PROJECT_ON),
    ({"covariance__factor_above": 64}, COVARIANCE_ON),
    ({"covariance__factor_rank": 64}, set()),
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
    leaves = _leaves(Config().model_dump()) | {"storage_options", "collect.pipeline_inputs"}
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


def cells_read(objects: Objects) -> Counter[str]:
    """How often each progress cell was read."""
    return Counter(key for key in objects.read if key.startswith("progress/") and "/c." in key)


class TestWhatIsRead:
    """At a URL every cell is a request: 1,000 units are 1,000 requests each time that a state is computed."""

    def test_the_states_read_each_cell_once(self, tiny: Any) -> None:
        config, store = tiny
        with counted() as objects:
            read_states(config, prompts_of(config), store)
        cells = cells_read(objects)
        assert {key.split("/")[1] for key in cells} == {"collect", "covariance", "project"}
        assert set(cells.values()) == {1}

    def test_running_a_complete_pipeline_again_reads_each_cell_once(self, tiny: Any) -> None:
        config, _ = tiny
        with counted() as objects:
            nb.run(config)
        assert set(cells_read(objects).values()) == {1}

    def test_so_does_the_command(self, tiny: Any, tmp_path: Path) -> None:
        config, _ = tiny
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        for command in ("run", "status"):
            with counted() as objects:
                assert CliRunner().invoke(app, [command, "-c", str(tmp_path / "c.yaml")]).exit_code == 0
            assert set(cells_read(objects).values()) == {1}, command

    def test_held_out_prompts_are_read_once_as_well(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", **TINY, heldout_prompts=["a green cross on a black background"])
        nb.run(config, device="cpu")
        with counted() as objects:
            nb.run(config)
        # Keys begin inside a store: the first unit of either store has the same one.
        assert max(cells_read(objects).values()) == 2
        assert cells_read(objects)["progress/collect/c.1"] == 1
