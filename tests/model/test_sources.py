"""Where a model is: folders, single files, hub ids, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nullbooth_cli.model.sources import Source
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from tests.support.builders import ROOT
from tests.support.loading import refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./gone", ["no model folder at gone", "hub id"]),
        ("a/b/c", ["no model folder at a/b/c"]),
        ("models/gone.safetensors", ["no model file at models/gone.safetensors"]),
        ("https://huggingface.co/owner/name/x.safetensors", ["is an address", "hf download owner/name FILE"]),
        (str(ROOT / "README.md"), ["README.md is not a model", ".safetensors"]),
        (str(ROOT / "nullbooth_cli/toy/unet"), ["it has no model_index.json", "only one part of a pipeline"]),
    ],
)
def test_names(name: str, words: list[str]) -> None:
    refused(name, *words)


def test_a_folder_with_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    refused(tmp_path, "it has no model_index.json", f"set model to the file {tmp_path / 'one.safetensors'}")


@pytest.mark.parametrize("kind", ["pickled folder", "checkpoint"])
def test_pickles_are_refused_until_they_are_allowed(kinds: Any, kind: str) -> None:
    name, settings = kinds[kind]
    refused(name, "pickle", "allow_pickle: true", **{**settings, "allow_pickle": False})


def test_a_single_file_without_its_configs(kinds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name, _ = kinds["single file"]
    # With 8 latent channels it looks like that model to diffusers.
    refused(name, "has weights only", "timbrooks/instruct-pix2pix is not in the cache", "set pipeline_config to the folder")
    refused(name, "pipeline_config: ", "is a single file as well", pipeline_config=name)
    refused(name, "revision and variant mean nothing for a single file", pipeline_config="toy", revision="main")
    refused("toy", "pipeline_config is only for single-file models", pipeline_config="toy")


@pytest.mark.parametrize("kind", [Config, Recipe])
def test_a_config_and_a_recipe_name_a_model_alike(kind: type[Config] | type[Recipe]) -> None:
    named = {"model": "owner/name", "revision": "main", "variant": "fp16", "pipeline_config": "owner/other"}
    settings = kind.model_validate({**named, "local_files_only": True, "allow_pickle": True})
    assert Source.of(settings) == Source(**named, local_files_only=True, allow_pickle=True)  # type: ignore[arg-type]
    assert Base.of(settings) == Base(**named)
