"""The training script of the embedded model, and the pipeline that it made."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nullbooth_cli.toy import FOLDER, train, world
from tests.support.builders import ROOT

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


def test_the_training_script_trains_and_saves_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each part in this process: the code path of the documented command, without its patience."""
    monkeypatch.setattr(train, "NUM_PICTURES", 64)
    parts = tmp_path / "parts"
    assert train.train_autoencoder(parts / "vae", seed=0, steps=2) > 0
    assert train.train_denoiser(parts, seed=0, plain=2, varied=2) > 0
    train.assemble(parts, tmp_path / "out")
    again = tmp_path / "again"
    train.train_denoiser(again, seed=0, plain=2, varied=2)
    # The seed decides data, order and noise; sums in float32 may still round differently from one run to the next.
    first, second = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (parts, again))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-2, atol=1e-3)
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.model.load import load_pipeline

    made = load_pipeline(
        str(tmp_path / "out"), revision=None, variant=None, dtype="float32", local_files_only=True, device=pick_device("cpu")
    )
    assert made("a red circle", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


def test_the_folder_is_a_pipeline_for_anyone() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(FOLDER)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.config.addition_embed_type is None, "all text enters through cross-attention"


def test_it_is_small_and_in_float16() -> None:
    from safetensors import safe_open

    files = [path for part in PARTS for path in (FOLDER / part).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} <= {"F16", "I64"}  # noqa: SIM118


def test_prompt_files() -> None:
    kept, held_out = lines("toy.txt"), lines("toy_heldout.txt")
    assert len(set(kept)) >= 200
    assert len(set(held_out)) >= 60
    assert not set(kept) & set(held_out)
    unseen = {(s, c, b) for s, c, b in world.split()[1]}
    for text in held_out:
        words = text.split()
        assert next(t for t in unseen if t[0] in words and t[1] in words and words[-2] == t[2])


def lines(name: str) -> list[str]:
    return (ROOT / "dataset/prompts" / name).read_text().splitlines()
