"""The model of a config: its scheduler, its steps, and the projections that the config chooses."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from nullbooth_cli.collect import open_model
from nullbooth_cli.collect.open_model import scheduler_of
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.toy import FOLDER
from tests.support.builders import PROMPTS, execute, features_at, small_config
from tests.support.by_hand import NOISE, by_hand


def test_the_models_own_scheduler_may_walk_more_steps_than_asked(tmp_path: Path, pipe: Any) -> None:
    """PNDM, which Stable Diffusion 1 ships with, repeats its second step."""
    shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("scheduler", "*.py", "__pycache__"))
    pndm = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1)
    pndm.save_pretrained(tmp_path / "model" / "scheduler")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistepScheduler", "PNDMScheduler"))
    config = small_config(
        tmp_path / "run.zarr",
        model=str(tmp_path / "model"),
        schedule__sampler_strategy="model",
        collect__cross_attention_layers=["mid_block*"],
    )
    store = execute(config, "collect")
    assert len(store.schedule()) == 5
    site = next(site for site in store.sites if site.feature == "q")
    projection = f"{site.layer}.to_q"
    expected = by_hand(pipe, PROMPTS[:3], 0, projection, diffusers.PNDMScheduler.from_config(pndm.config))
    np.testing.assert_allclose(features_at(store, site, 4, 0)[:, :4], expected[4, :3], rtol=1e-3, atol=1e-3)


def test_chosen_layers_and_features(tmp_path: Path) -> None:
    store = execute(
        small_config(
            tmp_path / "run.zarr",
            collect__cross_attention_layers=["mid_block*", 0],
            collect__collect_features={"k_features": False, "v_features": False},
        ),
        "collect",
    )
    assert [site.name.split(".attentions")[0] + " " + site.feature for site in store.sites] == [
        "down_blocks.0 q",
        "down_blocks.0 out",
        "mid_block q",
        "mid_block out",
    ]


def test_the_scheduler_of_a_strategy_has_the_noise_of_the_model(tmp_path: Path) -> None:
    found = scheduler_of(small_config(tmp_path / "run.zarr", schedule__sampler_strategy="Euler a"))
    assert type(found).__name__ == "EulerAncestralDiscreteScheduler"
    assert {name: found.config[name] for name in NOISE} == NOISE


def test_steps_need_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_model, "load_model", lambda *_: pytest.fail("the model is loaded"))
    _, steps = open_model.compute_steps(small_config(tmp_path / "run.zarr", schedule__num_denoising_steps=6), 1)
    assert [step.index for step in steps] == list(range(6))
    assert (steps[0].timestep, steps[0].key) == (999.0, "alpha_00_9e2")


def test_the_path_is_that_of_the_settings(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", collect__height=64, collect__width=32, collect__seed=7)
    assert open_model.denoising_path(config) == DenoisingPath(
        num_inference_steps=4, steps=(), guidance_scale=4.0, height=64, width=32, seed=7
    )


def test_a_preview_builds_the_model_without_its_weights(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=[0])
    preview = open_model.open_preview(config, "cpu", pytest.fail)
    assert not preview.loaded
    assert [projection.feature for projection in preview.chosen] == ["q", "k", "v", "out"]


@pytest.mark.parametrize(("given", "missing"), [("height", "width"), ("width", "height")])
def test_one_side_of_the_size_alone_is_refused_before_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, missing: str
) -> None:
    """Stable Diffusion then takes neither, other pipelines the one."""
    monkeypatch.setattr(open_model, "load_model", lambda *_: pytest.fail("the model was loaded"))
    config = small_config(tmp_path / "run.zarr", **{f"collect__{given}": 64})
    with pytest.raises(ConfigError, match=rf"collect\.{given} is 64, and collect\.{missing} is not set") as caught:
        open_model.load_path(config, (), "cpu")
    assert caught.value.hint == "set both, or neither for the model's own size"
