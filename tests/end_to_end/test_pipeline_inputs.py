"""Pipelines that need more than a prompt: refused before anything is written, recorded with it, stale when it changes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import nullbooth_cli as nb
from nullbooth_cli.cli import app
from nullbooth_cli.editing.edit import edit
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model import load
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.settings.config import Config
from tests.support import loading
from tests.support.builders import PROMPTS, execute, prompts_of, states_of
from tests.support.model_files import copy_folder
from tests.support.stages import config_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model as an image-to-image pipeline, and a picture beside it."""
    named(copy_folder(tmp_path / "model"), "StableDiffusionImg2ImgPipeline")
    picture(tmp_path / "photo.png", 0)
    return tmp_path


def named(model: Path, class_name: str) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": class_name}))


def picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)


def with_inputs(folder: Path, **inputs: object) -> Config:
    return config_of(folder / "run.zarr", PROMPTS[:4], model=str(folder / "model"), collect__pipeline_inputs=inputs)


@pytest.mark.parametrize("command", [["run"], ["schedule"], ["collect"], ["inspect", "--layers"], ["run", "--dry-run"]])
def test_every_command_names_what_is_missing_and_writes_nothing(
    folder: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    (folder / "c.yaml").write_text(yaml.safe_dump(with_inputs(folder).model_dump(exclude={"storage_options"})))
    found = CliRunner().invoke(app, [*command, "-c", str(folder / "c.yaml")])
    assert found.exit_code == ConfigError.exit_code
    assert "StableDiffusionImg2ImgPipeline needs image beside the prompt" in found.output
    assert "set collect.pipeline_inputs to {image: FILE}" in found.output
    assert not (folder / "run.zarr").exists()


@pytest.mark.parametrize("command", [["run"], ["collect"], ["inspect", "--layers"], ["run", "--dry-run"]])
def test_every_command_refuses_a_class_by_its_name(folder: Path, command: list[str]) -> None:
    named(folder / "model", "CycleDiffusionPipeline")
    (folder / "c.yaml").write_text(yaml.safe_dump(with_inputs(folder).model_dump(exclude={"storage_options"})))
    found = CliRunner().invoke(app, [*command, "-c", str(folder / "c.yaml")])
    assert found.exit_code == ModelError.exit_code
    assert "CycleDiffusionPipeline cannot be used here: it takes two prompts" in found.output
    assert not (folder / "run.zarr").exists()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"image": "gone.png", "strength": 1.0}, "collect.pipeline_inputs.image: no file at gone.png"),
        ({"image": "c.safetensors", "strength": 1.0}, "collect.pipeline_inputs.image: cannot read c.safetensors"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_before_anything_is_written(
    folder: Path, inputs: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "c.safetensors").write_text("no tensor at all")
    (folder / "c.yaml").write_text(yaml.safe_dump(with_inputs(folder, **inputs).model_dump(exclude={"storage_options"})))
    found = CliRunner().invoke(app, ["collect", "-c", "c.yaml"])
    assert (found.exit_code, said in found.output) == (ConfigError.exit_code, True)
    assert not (folder / "run.zarr").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strength": "high"}, "fails with these collect.pipeline_inputs: TypeError: '<' not supported"),
        ({"strength": 1.0, "image": []}, "fails with these collect.pipeline_inputs: IndexError: list index out of range"),
        ({"strength": 1.0, "clip_skip": 99}, "fails with these collect.pipeline_inputs: IndexError: tuple index out of range"),
    ],
)
def test_a_value_that_the_pipeline_cannot_use_is_an_error_of_the_config(
    folder: Path, wrong: dict[str, object], said: str
) -> None:
    config = with_inputs(folder, **{"image": str(folder / "photo.png"), **wrong})
    with pytest.raises(ConfigError, match=f"StableDiffusionImg2ImgPipeline {re.escape(said)}"):
        execute(config, "collect")


def test_another_picture_makes_the_collection_stale(folder: Path) -> None:
    config = with_inputs(folder, image=str(folder / "photo.png"), strength=1.0, negative_prompt="blurry")
    store = execute(config, "schedule", "collect")
    assert states_of(config)["collect"] == "complete"
    picture(folder / "photo.png", 1)
    found = stage_states(config, prompts_of(config), store)["collect"]
    assert (found.state, [because.field for because in found.stale_because]) == ("stale", ["collect.pipeline_inputs.image"])
    picture(folder / "photo.png", 0)
    assert states_of(config)["collect"] == "complete"


def test_an_edit_reads_texts_with_the_same_inputs(folder: Path) -> None:
    config = with_inputs(folder, image=str(folder / "photo.png"), strength=1.0)
    nb.run(config, device="cpu")
    pipe, store = loading.load(folder / "model"), nb.open_store(config.store)
    assert edit(pipe, store, {PROMPTS[0]: PROMPTS[1]}).weights
    (folder / "photo.png").unlink()
    with pytest.raises(ConfigError, match=r"collect.pipeline_inputs.image: no file at"):
        edit(loading.load(folder / "model"), store, {PROMPTS[0]: PROMPTS[1]})
