"""The example scripts of the documentation, on tiny pipelines: LoRAs that diffusers loads, and that leave collected prompts."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import nullbooth_cli as nb
from nullbooth_cli.model.denoisers import denoiser_of
from tests.support.builders import ROOT, execute, small_config
from tests.support.pictures import photos
from tests.support.tiny import saved

NULL_DIM = 4


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_an_example_trains_a_lora_that_leaves_the_collected_prompts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(name, tmp_path)
    store = execute(
        small_config(
            tmp_path / "run.zarr",
            schedule__sampler_strategy="model",
            model=str(model),
            collect__cross_attention_layers="all",
            project__null_dim=NULL_DIM,
            project__relative_threshold=None,
        ),
        *("schedule", "collect", "covariance", "project"),
    )
    pictures = photos(tmp_path / "pictures", ["a", "b"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = {
        "model": model,
        "store": store.path,
        "pictures": pictures,
        "prompt": "a photo of sks dog",
        "output": tmp_path / "lora",
        "size": 16,
        "steps": 6,
        "rate": 1e-1,
    }
    example(name).main([text for key, value in options.items() for text in (f"--{key}", str(value))])
    assert "largest drift" in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    opened = nb.open_store(store.path)
    before = {key: tensor.double().numpy() for key, tensor in denoiser_of(pipe).state_dict().items()}
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora()
    after = {key.replace(".base_layer.", "."): tensor for key, tensor in denoiser_of(pipe).state_dict().items()}
    moved = 0.0
    for site in opened.sites():
        second = opened.moment(site).second_moment
        largest = np.linalg.eigvalsh(second)[NULL_DIM - 1]  # of the null space
        for weight in site.weights:
            change = after[weight].double().numpy() - before[weight]
            of_outputs, of_weight = np.sqrt(np.trace(change @ second @ change.T)), np.linalg.norm(change)
            assert of_outputs <= of_weight * np.sqrt(max(largest, 0)) + 1e-6 * np.sqrt(np.trace(second))
            free = of_weight * np.sqrt(np.trace(second) / site.dim)  # of a change in any direction
            assert of_outputs <= 0.5 * free + 1e-6
            moved = max(moved, float(of_weight / np.linalg.norm(before[weight])))
    assert moved > 1e-2


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"train_lora_{name}", ROOT / f"docs/examples/train_lora_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
