"""Shipped files, found in the repository. tests/end_to_end/test_wheel.py finds them in a wheel."""

import shutil
from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import shipped as module
from nullbooth_cli.settings.captions import captioned_images, has_captions
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.images import image_files
from nullbooth_cli.settings.knowledge import heldout_prompts, knowledge_prompts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.settings.shipped import configs, instances, prompt_files, recipes, shipped
from tests.support.builders import ROOT


def test_every_file_has_a_name() -> None:
    assert configs() == ["toy", "flux", "lcm", "pixart", "sd14", "sd15", "sd21", "sd3", "sdxl"]
    assert recipes() == [f"train/{name}" for name in ("flux", "pixart", "sd15", "sd35", "sdxl", "toy")]
    assert prompt_files() == ["dog_prompts_1000.txt", "knowledge_1000.txt", "toy.txt", "toy_heldout.txt"]
    assert [shipped(name) for name in instances()] == [ROOT / "dataset/instances/toy", ROOT / "dataset/instances/toy_varied"]
    assert shipped("toy") == shipped("nullbooth") == ROOT / "configs/nullbooth.yaml"
    found = {shipped(name) for name in (*configs(), *recipes(), *prompt_files())}
    kept = {*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "dataset/prompts").glob("*.txt")}
    assert found == kept - {ROOT / "dataset/prompts" / module.CLASS_TEMPLATES}
    assert [load_config(shipped(name)).store for name in configs()] == [f"runs/{name}.zarr" for name in configs()]
    assert {load_settings(Recipe, shipped(name)).word for name in recipes()} == {"sks"}


def test_an_installed_package_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyproject.toml copies them into a wheel."""
    for folder in ("configs", "dataset/prompts", "dataset/instances"):
        shutil.copytree(ROOT / folder, tmp_path / "shipped" / folder)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path)
    module._root.cache_clear()
    try:
        assert shipped("sdxl") == tmp_path / "shipped/configs/sdxl.yaml"
        assert shipped("toy.txt") == tmp_path / "shipped/dataset/prompts/toy.txt"
        assert len(load_prompts("nullbooth:toy_heldout.txt")) == 64
    finally:
        module._root.cache_clear()


@pytest.mark.parametrize("name", ["sd17", "../pyproject.toml", "train", "toy.yaml", "prompts/toy.txt", ""])
def test_another_name_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(ConfigError, match="nullbooth ships no ") as caught:
        shipped(name)
    assert caught.value.hint.startswith("choose one of toy, flux, ")
    assert caught.value.hint.endswith(
        "train/toy, dog_prompts_1000.txt, knowledge_1000.txt, toy.txt, toy_heldout.txt, instances/toy, instances/toy_varied"
    )


def test_a_setting_names_a_shipped_prompt_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = build_config({"original_knowledge_prompts": "nullbooth:toy_heldout.txt", "heldout_prompts": "nullbooth:toy.txt"})
    assert knowledge_prompts(config) == load_prompts(str(ROOT / "dataset/prompts/toy_heldout.txt"))
    assert heldout_prompts(config) == load_prompts(str(ROOT / "dataset/prompts/toy.txt"))
    (tmp_path / "nullbooth:toy.txt").write_text("a file of mine\n")
    assert [prompt.text for prompt in load_prompts("./nullbooth:toy.txt")] == ["a file of mine"]
    with pytest.raises(ConfigError, match=r"class_prompts: nullbooth ships no prompt file 'cats\.txt'") as caught:
        load_prompts("nullbooth:cats.txt", "class_prompts")
    assert caught.value.hint.startswith("choose one of nullbooth:dog_prompts_1000.txt, nullbooth:knowledge_1000.txt, ")


def test_a_setting_names_a_shipped_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(captioned_images(Recipe().instance_images, "instance_images")) == 4
    assert has_captions("nullbooth:instances/toy_varied")
    assert len(image_files("nullbooth:instances/toy_varied")) == 20
    with pytest.raises(ConfigError, match=r"instance_images: nullbooth ships no folder of pictures 'instances/dog'") as caught:
        has_captions("nullbooth:instances/dog")
    assert caught.value.hint == "choose one of nullbooth:instances/toy, nullbooth:instances/toy_varied"


def test_the_default_prompts_are_there_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(knowledge_prompts(Config())) == 240
    assert heldout_prompts(Config()) == ()
