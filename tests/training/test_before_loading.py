"""Mistakes that are found before the model is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError, ModelError, NullboothError, StageError
from nullbooth_cli.model import load
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.resizing import Resizing
from nullbooth_cli.store import Store
from nullbooth_cli.training import setup
from nullbooth_cli.training.before_loading import read_inputs
from tests.support.builders import execute, small_config
from tests.support.pictures import MID, photos
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded")


def refused(kind: type[NullboothError], message: str, place: Path, **changes: Any) -> NullboothError:
    made = recipe(place / "out", **changes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "load_pipeline", never)
        with pytest.raises(kind, match=message) as caught:
            setup.set_up(made, "cpu")
    return caught.value


def altered(folder: Path, part: str, **changes: Any) -> str:
    """The config files of the embedded model without its weights, with changes to one part."""
    shutil.copytree(toy.FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "__pycache__"))
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def test_nothing_but_the_model_is_left_to_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_pipeline", never)
    with pytest.raises(AssertionError, match="a model is loaded"):
        setup.set_up(recipe(tmp_path, word="sks", class_prompts=CLASS_PROMPTS), "cpu")


def test_pictures(tmp_path: Path) -> None:
    error = refused(ConfigError, "no folder of images at .*gone", tmp_path, instance_images=str(tmp_path / "gone"))
    assert error.hint.startswith("set instance_images to a folder")
    folder = photos(tmp_path / "photos", ["a sks circle", "a sks star"])
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:200])
    refused(ConfigError, r"cannot read the image .*1\.png", tmp_path, instance_images=str(folder))
    Image.new("RGB", (48, 32)).save(folder / "1.png")
    message = r"1\.png is 48 x 32 pixels, the model trains at 32 x 32"
    refused(ConfigError, message, tmp_path, instance_images=str(folder), resize="none")


def test_the_size_of_a_model_that_draws_no_squares(tmp_path: Path) -> None:
    model = altered(tmp_path / "model", "unet", sample_size=[16, 8])
    refused(ConfigError, "is 32 x 32 pixels, the model trains at 32 x 64", tmp_path, model=model, resize="none")
    assert read_inputs(recipe(tmp_path, model=model, resolution=64), ()).resizing.size == (64, 128)


@pytest.mark.parametrize(("resolution", "hint"), [(10, "16, or"), (40, "32 or 48, or"), (63, "48 or 64, or")])
def test_a_resolution_that_the_model_cannot_halve(tmp_path: Path, resolution: int, hint: str) -> None:
    error = refused(ConfigError, f"resolution is {resolution}, .* multiples of 16", tmp_path, resolution=resolution)
    assert error.hint == f"set it to {hint} to null"


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_sizes_of_an_autoencoder_of_a_smaller_factor(tmp_path: Path, name: str) -> None:
    """Here 2: the pipelines take multiples of 8 all the same, and refused 20 x 12 after the model was loaded."""
    model, folder = str(saved(name, tmp_path)), str(photos(tmp_path / "photos", ["a sks circle"], width=50, height=30))
    found = read_inputs(recipe(tmp_path, model=model, instance_images=folder, resize="buckets"), ()).resizing
    assert (found.step, found.target((50, 30))) == (8, (16, 16))
    error = refused(ConfigError, "resolution is 20, and the model takes multiples of 8", tmp_path, model=model, resolution=20)
    assert error.hint == "set it to 16 or 24, or to null"


def test_a_picture_of_more_places_than_a_model_knows(tmp_path: Path) -> None:
    """This Stable Diffusion 3 has a table of 16 x 16 patches, of 2 x 2 places of 2 x 2 pixels."""
    model, folder = str(saved("sd3", tmp_path)), str(photos(tmp_path / "photos", ["a sks circle"], width=60, height=20))
    made = {"model": model, "instance_images": folder, "resolution": 64}
    assert read_inputs(recipe(tmp_path, **made), ()).resizing.size == (64, 64)
    message = "pictures would be {} pixels, and this model has places for 64 pixels a side at most"
    error = refused(ConfigError, message.format("96 x 40"), tmp_path, **made, resize="buckets")
    assert error.hint == "set a smaller resolution"
    refused(ConfigError, message.format("72 x 72"), tmp_path, **made | {"resolution": 72})


def test_the_size_that_pictures_get(tmp_path: Path) -> None:
    """Of the embedded model: 32 x 32 pixels, whose latents, 8 x 8, are halved twice."""
    folder = photos(tmp_path / "photos", ["a sks circle"] * 2, width=60, height=15)
    found = read_inputs(recipe(tmp_path, instance_images=str(folder), resize="buckets"), ())
    assert found.resizing == Resizing(how="buckets", size=(32, 32), step=16)
    assert found.resizing.target((60, 15)) == (64, 16)
    assert found.notes == ()
    found = read_inputs(recipe(tmp_path, instance_images=str(folder), resolution=48), ())
    assert found.resizing == Resizing(how="crop", size=(48, 48), step=16)
    assert found.notes == ("enlarged more than twice, which blurs what is learned: 0.png, 1.png",)


def test_one_caption_for_all(tmp_path: Path) -> None:
    """It replaces captions that are there, and says so; notes beside the pictures do not stop it."""
    folder = photos(tmp_path / "photos", ["a sks circle", "a sks star"])
    (folder / "1.txt").unlink()
    refused(ConfigError, r"no caption for .*1\.png", tmp_path, instance_images=str(folder))
    (folder / "ideas.txt").write_text("on the beach?\n\nin the snow?")
    found = read_inputs(recipe(tmp_path, instance_images=str(folder), instance_prompt="a sks thing"), ())
    assert found.captions == ["a sks thing"] * 2
    assert found.notes == ("every picture has the caption of instance_prompt; not read: 0.txt, ideas.txt",)
    folder.rename(numbered := tmp_path / "10_sks star")
    found = read_inputs(recipe(tmp_path, instance_images=str(numbered), instance_prompt="a sks thing"), ())
    assert found.notes == ("every picture has the caption of instance_prompt; not read: 10_sks star, 0.txt, ideas.txt",)
    numbered.rename(folder)
    (folder / "1.txt").write_text("a sks star")
    error = refused(ConfigError, r"no image for the caption .*ideas\.txt", tmp_path, instance_images=str(folder))
    assert "move a note elsewhere" in error.hint


def test_models(tmp_path: Path) -> None:
    unknown = saved("flux", tmp_path / "unknown")
    index = json.loads((unknown / "model_index.json").read_text())
    for name in ("FluxKontextPipeline", "LatentConsistencyModelPipeline", "ChromaPipeline"):
        (unknown / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        message = f"{name} cannot be trained here: the text-to-image pipelines of Stable Diffusion 1, 2, XL"
        error = refused(ModelError, message, tmp_path, model=str(unknown))
        assert "nb.constrain" in error.hint
    for name, part, changes, message in (
        ("sdxl", "unet", {"time_cond_proj_dim": 16}, "its U-Net takes a guidance scale"),
        ("flux", "transformer", {"in_channels": 32}, "its denoiser takes 32 channels and latents have 16: it needs a picture"),
        ("sd3", "transformer", {"in_channels": 8}, "its denoiser takes 8 channels and latents have 4"),
        ("sd1", "scheduler", {"prediction_type": "sample"}, "it predicts sample, not epsilon or v_prediction"),
        ("sdxl", "scheduler", {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "scales noise as EDM does"),
    ):
        folder = saved(name, tmp_path / message)
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        refused(ModelError, message, tmp_path, model=str(folder))
    inpainting = altered(tmp_path / "inpainting", "unet", in_channels=17)
    refused(ModelError, r"the U-Net of .* takes 17 channels, and latents have 8", tmp_path, model=inpainting)
    refused(ConfigError, "no model folder at nowhere", tmp_path, model="nowhere")


def test_settings_of_the_loss_that_a_model_does_not_have(tmp_path: Path) -> None:
    flux, sdxl = (str(saved(name, tmp_path)) for name in ("flux", "sdxl"))
    for model, setting, message in (
        (flux, {"snr_gamma": 5.0}, "snr_gamma is for models that predict noise or velocity.* FluxPipeline is one of flow"),
        (sdxl, {"training_guidance": 1.0}, "training_guidance is an input of Flux .*StableDiffusionXLPipeline has no such"),
        (sdxl, {"timestep_density": "sigma_shift"}, "sigma_shift is for models of flow matching"),
    ):
        error = refused(ConfigError, message, tmp_path, model=model, **setting)
        assert f"set {next(iter(setting))} to" in error.hint
    for model, setting in ((flux, {"training_guidance": 1.0, "timestep_density": "sigma_shift"}), (sdxl, {"snr_gamma": 5.0})):
        read_inputs(recipe(tmp_path, model=model, resolution=32, **setting), ())


def test_class_prompts(tmp_path: Path) -> None:
    error = refused(ConfigError, "no prompt file at .*gone.txt", tmp_path, class_prompts=str(tmp_path / "gone.txt"))
    assert "class_prompts" in error.hint
    found = read_inputs(recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=1), ())
    assert found.class_captions == (CLASS_PROMPTS[0],)
    assert found.notes == ("class_images is 1: only the first 1 of 2 class_prompts get a picture",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word": "qfj"}, "no caption has the word 'qfj'"),
        ({"word": ""}, "word is '', which is not one word"),
        ({"word": "sks circle"}, "word is 'sks circle', which is not one word"),
        ({"word": "qfj", "method": "lora"}, "no caption has the word 'qfj'"),
        ({"word": "circle", "class_prompts": CLASS_PROMPTS}, "the word 'circle' is in 2 preserved prompts"),
    ],
)
def test_a_word_that_cannot_train(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(ConfigError, message, tmp_path, **changes)


def test_a_word_of_the_preserved_prompts(tmp_path: Path, finished: tuple[Config, Store]) -> None:
    message = "the word 'circle' is in .* preserved prompts, such as '.*circle"
    refused(ConfigError, message, tmp_path, word="circle", store=str(finished[1].path))


def test_stores(tmp_path: Path) -> None:
    refused(StageError, "no store at .*gone.zarr", tmp_path, store=str(tmp_path / "gone.zarr"))
    config = small_config(tmp_path / "begun.zarr", **MID)
    execute(config, "schedule", "collect")
    refused(StageError, "project", tmp_path, store=config.store)


def test_features_without_a_projector(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", collect__collect_features={"q_features": False, "out_features": False})
    execute(config, "schedule", "collect", "covariance", "project")
    message = r"10 weights would train without a constraint: .* has no projector for down_blocks.*to_q\.weight and 9 more"
    error = refused(ConfigError, message, tmp_path, store=config.store, features=["k", "q"])
    assert error.hint.endswith("or leave q out of features")


def test_a_word_in_the_part_that_is_cut_off(tmp_path: Path) -> None:
    """The tokenizer takes 16 tokens: the model never sees a word behind them."""
    long = " ".join(["red circle"] * 20)
    refused(ConfigError, "no caption has the word 'sks'", tmp_path, word="sks", instance_prompt=f"{long} sks")
    seen = recipe(tmp_path, word="sks", instance_prompt="a sks circle", class_prompts=[f"{long} sks"])
    assert read_inputs(seen, [f"{long} sks"]).captions == ["a sks circle"] * 4
