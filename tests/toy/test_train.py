"""The training script of the embedded model, and the pipeline that it made."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
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


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=["plain", "float16", "bfloat16"])
def test_the_folder_is_a_pipeline_for_anyone(dtype: torch.dtype | None) -> None:
    """Without a dtype all parts load in float32: diffusers always does that, transformers takes the dtype of the file."""
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, **({} if dtype is None else {"dtype": dtype}))
    expected = dtype or torch.float32
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {expected}
    assert pipe.unet.config.addition_embed_type is None, "all text enters through cross-attention"
    seed = torch.manual_seed(0)
    drawn = pipe("a red circle on a blue background", num_inference_steps=8, generator=seed, output_type="np").images
    read = world.read(drawn[0])
    assert (read.colour, read.shape, read.background) == ("red", "circle", "blue")


def test_it_is_small() -> None:
    """The text encoder is in float32, the rest in float16."""
    files = [path for part in PARTS for path in (FOLDER / part).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    for path in files:
        if path.suffix == ".safetensors":
            dtype = "F32" if path.parent.name == "text_encoder" else "F16"
            with safe_open(path, "np") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} <= {dtype, "I64"}  # noqa: SIM118


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
