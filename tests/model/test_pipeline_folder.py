"""Pipeline folders that are refused before a weight is read, and parts that nullbooth does without."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nullbooth_cli.errors import ConfigError, ModelError, NullboothError
from nullbooth_cli.model import load
from nullbooth_cli.model.pipeline_folder import read_pipeline_folder
from nullbooth_cli.model.sources import Source
from tests.support.builders import execute, small_config
from tests.support.model_files import copy_folder
from tests.support.stages import TINY

CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_folder(tmp_path / "model")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def load_whole(folder: Path) -> Any:
    return load.load_pipeline(str(folder), dtype="float32", device=torch.device("cpu"))


def load_parts(folder: Path) -> list[NullboothError]:
    """What a schedule and what a whole load raise."""
    raised = []
    for what in (lambda: load.load_scheduler(Source(str(folder))), lambda: load_whole(folder)):
        with pytest.raises((ConfigError, ModelError)) as caught:
            what()
        raised.append(caught.value)
    return raised


@pytest.mark.parametrize("file", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize(
    "text", ["", "[]", "null", '"text"', "{", '{"_class_name": ["a"]}', '{"_class_name": 3}', "\ud800", "FOLDER"]
)
def test_a_config_that_is_something_else_is_named(folder: Path, file: str, text: str) -> None:
    place = folder / file
    place.unlink()
    if text == "FOLDER":
        place.mkdir()
    else:
        place.write_bytes(text.encode("utf-8", "surrogatepass"))
    for error in load_parts(folder):
        assert isinstance(error, ConfigError)
        assert file in f"{error.message} {error.hint}", error.message


@pytest.mark.parametrize("entry", [["diffusers"], ["diffusers", 3], [["a"], "b"], []])
def test_a_part_of_the_index_is_a_library_and_a_class(folder: Path, entry: Any) -> None:
    change(folder / "model_index.json", unet=entry)
    for error in load_parts(folder):
        assert f"model_index.json: unet is {entry}" in error.message


def test_a_list_of_numbers_is_a_setting_of_the_pipeline(folder: Path) -> None:
    parts = read_pipeline_folder(folder, weights=True).parts
    change(folder / "model_index.json", text_encoder_select_layers=[1, 2])
    assert read_pipeline_folder(folder, weights=True).parts == parts


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ConfigError, match=f"has no {part}: model_index.json names one, and .*{part} is missing or empty"):
        load_whole(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights_is_named(folder: Path, part: str) -> None:
    """diffusers said that there is no file named so, after it had loaded the others."""
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    assert read_pipeline_folder(folder, weights=False).parts
    with pytest.raises(ConfigError, match=f"{part} has a config.json and no weights"):
        read_pipeline_folder(folder, weights=True)


def test_parts_that_nothing_here_uses_are_not_needed(folder: Path, pipe: Any) -> None:
    """As in a copy of Stable Diffusion 1.5 without its safety checker, which is 1.2 GB."""
    change(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    assert set(read_pipeline_folder(folder, weights=True).left_out) == {"safety_checker", "feature_extractor", "image_encoder"}
    loaded = load_whole(folder)
    assert loaded.safety_checker is None
    assert load.weights_digest(loaded) == load.weights_digest(pipe)


@pytest.mark.parametrize(
    ("channels", "words"), [(9, "an image with a mask"), (8, "an image to edit"), (5, "a depth image"), (3, "something else")]
)
def test_a_unet_that_takes_more_than_latents_is_refused(folder: Path, channels: int, words: str) -> None:
    change(folder / "unet" / "config.json", in_channels=channels)
    change(folder / "vae" / "config.json", latent_channels=4)
    for error in load_parts(folder):
        assert isinstance(error, ModelError)
        assert f"takes {channels} channels, and latents have 4: it needs {words}" in error.message


def test_a_class_that_cannot_be_used_is_refused_with_its_reason(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="StableDiffusionAttendAndExcitePipeline")
    for error in load_parts(folder):
        assert isinstance(error, ModelError)
        assert error.message.startswith("StableDiffusionAttendAndExcitePipeline cannot be used here: it changes the latents by")


def test_a_unet_that_takes_an_image_belongs_to_a_class_that_does(folder: Path) -> None:
    change(folder / "unet" / "config.json", in_channels=9)
    change(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    assert read_pipeline_folder(folder, weights=True).class_name == "StableDiffusionInpaintPipeline"


@pytest.mark.parametrize("strategy", [None, "DDIM", "model"])
def test_the_schedule_is_that_of_the_scheduler_as_the_pipeline_loads_it(
    tmp_path: Path, folder: Path, strategy: str | None
) -> None:
    """Pipelines of Stable Diffusion set `steps_offset` to 1 and `clip_sample` to false."""
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", steps_offset=0, clip_sample=True)
    shipped, loaded = load.load_scheduler(Source(str(folder))), load_whole(folder).scheduler
    assert (shipped.config["steps_offset"], shipped.config["clip_sample"]) == (1, False)
    assert dict(shipped.config) == dict(loaded.config)
    config = small_config(tmp_path / "run.zarr", model=str(folder), **{**TINY, "schedule__sampler_strategy": strategy})
    execute(config, "schedule", "collect")


def test_a_unet_of_another_shape_than_square(tmp_path: Path, folder: Path) -> None:
    """`sample_size` may be a height and a width."""
    change(folder / "unet" / "config.json", sample_size=[8, 6])
    config = small_config(tmp_path / "run.zarr", model=str(folder), **{**TINY, "collect__cross_attention_layers": [0]})
    store = execute(config, "schedule", "collect")
    assert {site.num_tokens for site in store.sites if site.feature == "q"} <= {2 * 8 * 6, 2 * 4 * 3}
