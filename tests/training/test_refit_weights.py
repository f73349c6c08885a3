"""Trained weights and whole pipelines as finished changes: refitted, and in the form that they had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.trained_files import TrainedFiles
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support import tiny, trained_folders
from tests.support.edited_models import toy
from tests.support.refits import USED, moment_of, plain_m, text_inputs


@pytest.fixture(scope="module")
def opened(finished: tuple[Config, Store]) -> nb.OpenStore:
    return nb.open_store(finished[1].url)


@pytest.mark.parametrize("place", ["checkpoint-000200", "."])
def test_trained_weights_move_by_their_change(opened: nb.OpenStore, tmp_path: Path, place: str) -> None:
    """The word is in the text encoder while inputs are recorded. A whole result has its change in its last checkpoint."""
    output = trained_folders.training_output(tmp_path / "run", "full", 200)
    report = nb.refit(output / place, opened, ["a sks circle"], output=tmp_path / "new", m=10, device="cpu")
    files = TrainedFiles.find(tmp_path / "new")
    assert files is not None
    assert (files.token, files.base.model) == ("sks", "toy")
    pipe, weight = toy(), trained_folders.WEIGHT
    initial = pipe.unet.get_parameter(weight).detach().double().numpy()
    trained = load_file(output / "checkpoint-000200/trained/denoiser.safetensors")[weight].double().numpy()
    word = TrainedFiles.find(output / "checkpoint-000200/trained")
    assert word is not None
    assert word.word is not None
    word.word.load_into(pipe)
    m = plain_m(text_inputs(pipe, ["a sks circle"]), moment_of(opened, weight), 10)
    np.testing.assert_allclose(
        load_file(tmp_path / "new/denoiser.safetensors")[weight], initial + (trained - initial) @ m, atol=1e-5
    )
    assert [*report.weights] == [weight]


@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_trained_weights_outside_the_store(opened: nb.OpenStore, tmp_path: Path, outside: Any) -> None:
    folder = trained_folders.full_files(tmp_path / "trained", token=None)
    other = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    value = toy().unet.get_parameter(other).data + 0.1
    save_file({**load_file(folder / "denoiser.safetensors"), other: value}, folder / "denoiser.safetensors")
    report = nb.refit(folder, opened, USED, output=tmp_path / "new", m=10, outside=outside, device="cpu")
    assert report.outside == (other,)
    after = load_file(tmp_path / "new/denoiser.safetensors")
    assert (other in after) is (outside == "keep")
    assert outside == "drop" or torch.equal(after[other], value)


@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_a_whole_pipeline_stays_one(opened: nb.OpenStore, tmp_path: Path, outside: Any) -> None:
    """Of another trainer, which trained more than the store has, and the text encoder as well."""
    pipe, weight = toy(), trained_folders.WEIGHT
    norm, row = "mid_block.attentions.0.norm.weight", "encoder.layers.0.mlp.fc1.bias"
    pipe.unet.get_parameter(weight).data.copy_(trained_folders.changed_weight())
    pipe.unet.get_parameter(norm).data += 0.5
    pipe.text_encoder.get_parameter(row).data += 0.5
    pipe.save_pretrained(tmp_path / "old")
    pipe.unet.half().save_pretrained(tmp_path / "old/unet", variant="fp16")
    report = nb.refit(tmp_path / "old", opened, USED, output=tmp_path / "new", m=10, outside=outside, device="cpu")
    assert (report.outside, [*report.weights]) == ((norm,), [weight])
    assert f"{tmp_path / 'old'} has another text_encoder than the base, which is copied as it is" in report.notes
    base, old, new = toy(), *(DiffusionPipeline.from_pretrained(tmp_path / each) for each in ("old", "new"))
    initial = base.unet.get_parameter(weight).detach().double().numpy()
    m = plain_m(text_inputs(old, USED), moment_of(opened, weight), 10)
    wanted = initial + (trained_folders.changed_weight().double().numpy() - initial) @ m
    np.testing.assert_allclose(new.unet.get_parameter(weight).detach(), wanted, atol=1e-5)
    assert torch.equal(new.unet.get_parameter(norm), (old if outside == "keep" else base).unet.get_parameter(norm))
    assert torch.equal(new.text_encoder.get_parameter(row), old.text_encoder.get_parameter(row))
    assert sorted(file.name for file in (tmp_path / "new/unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert "refitted at m = 10" in opened.inspect_lora(tmp_path / "new").notes[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_in_another_precision_changed_only_what_differs(
    opened: nb.OpenStore, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipe = toy()
    pipe.unet.to(dtype).get_parameter(trained_folders.WEIGHT).data.copy_(trained_folders.changed_weight())
    pipe.save_pretrained(tmp_path / "old")
    report = nb.refit(tmp_path / "old", opened, USED, output=tmp_path / "new", m=10, device="cpu")
    assert ([*report.weights], report.outside, report.notes) == ([trained_folders.WEIGHT], (), ())
    assert report.drift_before == pytest.approx(opened.inspect_lora(tmp_path / "old").largest_drift, rel=1e-4)
    files = [load_file(tmp_path / each / "unet/diffusion_pytorch_model.safetensors") for each in ("old", "new")]
    assert {value.dtype for value in files[1].values()} == {dtype}
    assert [name for name in files[0] if not torch.equal(files[0][name], files[1][name])] == [trained_folders.WEIGHT]


def test_pipelines_that_do_not_fit(opened: nb.OpenStore, tmp_path: Path) -> None:
    def refused(words: str, place: Path) -> None:
        with pytest.raises(ConfigError, match=words):
            nb.refit(place, opened, USED, output=tmp_path / "never", device="cpu")
        assert not (tmp_path / "never").exists()

    refused(
        "the denoiser of .*, a StableDiffusionXLPipeline, has other weights than the base", tiny.saved("sdxl", tmp_path / "xl")
    )
    pipe = toy()
    pipe.unet.get_parameter("conv_in.weight").data += 1
    pipe.save_pretrained(tmp_path / "outside")
    refused("none of the 1 module of .* is in .*, such as conv_in.weight", tmp_path / "outside")
    pipe.unet.get_parameter("conv_in.weight").data *= float("nan")
    pipe.save_pretrained(tmp_path / "nan")
    refused("nan: conv_in.weight is not finite", tmp_path / "nan")
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    refused("has no safetensors files of its denoiser", tmp_path / "variant")
