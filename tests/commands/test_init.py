"""`nullbooth init`: the files that it writes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from nullbooth_cli.settings.shipped import configs
from tests.support.builders import ROOT
from tests.support.cli import nullbooth, refused


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NULLBOOTH_CONFIG", raising=False)
    monkeypatch.delenv("NULLBOOTH_STORE", raising=False)


def test_the_embedded_model(tmp_path: Path) -> None:
    result = nullbooth("init", "my dog")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        *("my dog/nullbooth.yaml", "my dog/train.yaml", "my dog/prompts/toy.txt", "my dog/prompts/toy_heldout.txt"),
        "my dog/instances/toy/",
    ]
    assert result.stderr == "next: cd 'my dog' && nullbooth doctor && nullbooth run\n"
    assert len(list((tmp_path / "my dog/instances/toy").iterdir())) == 21


def test_in_this_folder_the_next_commands_find_the_config(tmp_path: Path) -> None:
    result = nullbooth("init")
    assert result.stderr == "next: nullbooth doctor && nullbooth run\n"
    planned = nullbooth("run", "--dry-run", "--json", "-v")
    assert planned.exit_code == 0, planned.stderr
    assert planned.stderr.startswith("config nullbooth.yaml; store runs/toy.zarr\n")
    assert json.loads(planned.stdout)["stages"]["collect"]["units_total"] == 10


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("mine")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/toy.txt").symlink_to("gone")
    refused(nullbooth("init"), 2, "these files exist: train.yaml, prompts/toy.txt", "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts", "train.yaml"]
    (tmp_path / "prompts/toy.txt").unlink()
    assert nullbooth("init", "--force").exit_code == 0
    assert (tmp_path / "train.yaml").read_text().startswith("# A recipe of a training run. ")


@pytest.mark.parametrize("model", ["sdxl", str(ROOT / "tests/architectures/sdxl")])
def test_a_model_by_its_name_or_by_its_class(model: str) -> None:
    result = nullbooth("init", "new", "--model", model)
    assert result.stdout.splitlines() == ["new/nullbooth.yaml", "new/train.yaml", "new/prompts/knowledge_1000.txt"]
    assert ("is a StableDiffusionXLPipeline: the config sdxl fits it" in result.stderr) == (model != "sdxl")


def test_a_model_that_does_not_train_has_no_recipe() -> None:
    result = nullbooth("init", "new", "--model", "lcm")
    assert result.stdout.splitlines() == ["new/nullbooth.yaml", "new/prompts/knowledge_1000.txt"]
    assert "no train.yaml: nullbooth train cannot train a model like lcm; " in result.stderr


def test_json(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(ROOT / "tests/architectures/sd21")
    result = nullbooth("init", "new", "--model", "model", "--json", "-q")
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "schema_version": 1,
        "folder": "new",
        "model": "../model",
        "config": "sd21",
        "files": ["new/nullbooth.yaml", "new/train.yaml", "new/prompts/knowledge_1000.txt"],
    }
    assert re.search("^model: ../model ", (tmp_path / "new/train.yaml").read_text(), re.MULTILINE)


def test_models_that_are_none() -> None:
    refused(nullbooth("init", "--model", "sd17"), 2, "no config and no model folder is called sd17", "name one of toy, flux, lcm")
    refused(nullbooth("init", "--model", "./gone"), 2, "no model folder at gone")
    assert not list(Path().iterdir())


def test_the_help_names_every_config() -> None:
    shown = " ".join(nullbooth("init", "--help").stdout.split())
    first, *others = configs()
    assert f"The configs are {first} (the embedded model), {', '.join(others)}." in shown
