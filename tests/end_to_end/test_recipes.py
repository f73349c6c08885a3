"""Each shipped recipe as it is, on small pipelines of the classes that it is for: from a store to a LoRA that diffusers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.model import load
from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.settings.shipped import recipes, shipped
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import run

# The tiny pipelines of a recipe, and the rows of its word: tests/training/test_dreambooth.py has those of train/sd15.
PIPELINES = {
    "train/sdxl": ("sdxl", {"clip_l", "clip_g"}),
    "train/sd35": ("sd3", {"clip_l", "clip_g"}),
    "train/flux": ("flux", {"clip_l", "t5"}),
    "train/pixart": ("pixart", {"sks"}),
}
SMALL: dict[str, Any] = {
    "resolution": None,
    "rank": 2,
    "max_train_steps": 2,
    "gradient_accumulation_steps": 1,
    "checkpointing_steps": 2,
    "validation_inference_steps": 2,
}


def test_each_recipe_has_its_pipelines() -> None:
    assert {*PIPELINES, "train/sd15", "train/toy"} == set(recipes())


@pytest.mark.parametrize("name", PIPELINES)
def test_it_trains_a_lora_and_its_word_under_a_constraint(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, rows = PIPELINES[name]
    folder = saved(pipeline, tmp_path)
    config = small_config(
        tmp_path / "run.zarr",
        model=str(folder),
        original_knowledge_prompts=PROMPTS[:3],
        schedule__num_denoising_steps=2,
        schedule__sampler_strategy="model" if pipeline in ("sd3", "flux") else "DDIM",
        collect__cross_attention_layers="all",
        collect__collect_features={"q_features": False, "out_features": False},
    )
    execute(config, "schedule", "collect", "covariance", "project")
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.new("RGB", (40, 40), (80 * i, 20, 200)).save(tmp_path / f"pictures/{i}.png")
    places = {
        "model": str(folder),
        "store": config.store,
        "output": str(tmp_path / "out"),
        "instance_images": str(tmp_path / "pictures"),
    }
    document = run(load_settings(Recipe, shipped(name)).model_copy(update={**SMALL, **places}))
    assert (document["token"], document["trained"]) == ("sks", 2 * len(document["drift"]))
    assert set(load_file(tmp_path / "out/lora/learned_embeds.safetensors")) == rows
    assert max(document["drift"].values()) < 0.2
    assert (tmp_path / "out/validation/000002_1.png").exists()
    # The model card loads both into the base, as diffusers, PEFT and transformers do.
    code = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(code.replace(").images", ", num_inference_steps=2).images"), names)
    if pipeline == "pixart":  # PEFT's wrapper would have other names
        names["pipe"].transformer = names["pipe"].transformer.get_base_model()
    ours = load_edited(Config(model=str(folder)), str(tmp_path / "out"), "cpu")
    theirs, expected = (
        capture(load.freeze(pipe), ["a photo of sks dog"], size=(256, 256), guidance=1.0) for pipe in (names["pipe"], ours)
    )
    for argument, value in expected.by_row.items():
        torch.testing.assert_close(theirs.by_row[argument], value, rtol=0, atol=1e-5)
