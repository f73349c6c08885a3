"""`nullbooth collect`: the models, layers, devices and settings that it refuses."""

import shutil
from pathlib import Path

import pytest

from nullbooth_cli.store.local import LocalBacking
from tests.support.cli import nullbooth, refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.num_denoising_step=3", ["unknown key", "did you mean 'schedule.num_denoising_steps' for"]),
        ("schedule.num_denoising_steps=many", ["schedule.num_denoising_steps", "'many'"]),
        ("schedule.num_denoising_steps=0", ["schedule.num_denoising_steps", "0"]),
        ("schedule.num_denoising_steps=1", ["num_denoising_steps 1 "]),
        ("schedule.num_denoising_steps=1001", ["1001", "1000"]),
        ("project.relative_threshold='1e-5'", ["project.relative_threshold", "'1e-5'", "without quotes"]),
        ("original_knowledge_prompts=gone.txt", ["no prompt file at gone.txt"]),
        ("original_knowledge_prompts=[a dog, a dog]", ["prompt 2 repeats prompt 1"]),
        ("original_knowledge_prompts=[]", ["has no prompt"]),
        ("model=./gone", ["no model folder at gone"]),
        ("collect.keep=everything", ["collect.keep"]),
    ],
)
def test_config(small: Path, override: str, words: list[str]) -> None:
    refused(nullbooth("collect", "-c", str(small), "--set", override), 2, *words)


def test_a_model_folder_that_is_not_one(small: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    refused(nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 2, "it has no model_index.json")
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refused(nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 6, "model has no scheduler")


def test_a_model_without_its_weights(small: Path, tmp_path: Path) -> None:
    from nullbooth_cli.toy import FOLDER

    for name in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        shutil.copytree(FOLDER / name, tmp_path / "model" / name)
    shutil.copy(FOLDER / "model_index.json", tmp_path / "model")
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    refused(
        nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 2, "unet has a config.json and no weights"
    )


def test_a_layer_pattern_that_matches_nothing(small: Path) -> None:
    result = nullbooth("collect", "-c", str(small), "--set", "collect.cross_attention_layers=[middle*]")
    refused(result, 2, "'middle*' matches none of the 10 layers", "mid_block.attentions.0")


def test_stale(done: str) -> None:
    result = nullbooth("collect", "-s", done, "--set", "collect.guidance_scale=2")
    refused(result, 3, "collect.guidance_scale: 4.0 -> 2", "--force")
    assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0


def test_no_room(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalBacking, "free_nbytes", lambda self: 10)
    refused(nullbooth("collect", "-c", str(small)), 5, "10 are free")


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "tpu"])
def test_no_such_device(small: Path, device: str) -> None:
    refused(nullbooth("collect", "-c", str(small), "--device", device), 5, f"no such device: {device}", "cpu")
