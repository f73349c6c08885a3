"""The model of a config: its scheduler, its steps, and the projections that the config chooses."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

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
