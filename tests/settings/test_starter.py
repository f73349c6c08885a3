"""The files that a run starts from."""

import os
from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.settings.captions import load_captions
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.knowledge import heldout_prompts, knowledge_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.settings.shipped import configs, shipped
from nullbooth_cli.settings.starter import CONFIG, RECIPE, seen_from, starter, write_files


@pytest.mark.parametrize("name", configs())
def test_the_files_say_what_the_shipped_ones_say_from_inside_their_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = starter(name)
    write_files(tmp_path / "my dog", start.files)
    monkeypatch.chdir(tmp_path / "my dog")
    config, own = load_config(CONFIG), load_config(shipped(name))
    assert start.model == own.model
    assert knowledge_prompts(config) == knowledge_prompts(own)
    assert heldout_prompts(config) == heldout_prompts(own)
    places = {"original_knowledge_prompts": own.original_knowledge_prompts, "heldout_prompts": own.heldout_prompts}
    assert config.model_copy(update=places) == own
    assert "Paths start at the folder that this file is in" in Path(CONFIG).read_text().split("\n\n")[0]
    assert Path(CONFIG).read_text().splitlines()[0] == shipped(name).read_text().splitlines()[0]
    assert (RECIPE in start.files) == (name != "lcm")
    if RECIPE in start.files:
        recipe = load_settings(Recipe, Path(RECIPE))
        assert (recipe.model, recipe.store, recipe.word) == (config.model, config.store, "sks")
        assert recipe.output == f"runs/{name}-sks"
    if name == "toy":
        assert len(load_captions(recipe.instance_images)) == 20


def test_another_model_is_named_in_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, starter("sd21", "owner/fine-tuned").files)
    monkeypatch.chdir(tmp_path)
    assert load_config(CONFIG).model == load_settings(Recipe, Path(RECIPE)).model == "owner/fine-tuned"
    assert load_config(CONFIG).store == "runs/sd21.zarr"
    first = Path(CONFIG).read_text().splitlines()[0]
    assert first == "# For 'owner/fine-tuned'. The numbers below are those of the model that the config sd21 is for."
    with pytest.raises(ConfigError, match="ships no 'sd17'"):
        starter("sd17")


def test_a_model_as_it_is_seen_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "here")
    assert seen_from("dog", "model") == seen_from("dog", "./model/") == "../model"
    assert seen_from(".", "model") == "./model"
    assert seen_from("link", "model") == "../here/model"
    for folder in ("dog", ".", "link", "a/b"):
        os.makedirs(folder, exist_ok=True)
        assert os.path.samefile(os.path.join(os.path.realpath(folder), seen_from(folder, "model")), "model")
    assert seen_from("dog", str(tmp_path / "here/model")) == str(tmp_path / "here/model")
    assert seen_from("dog", "owner/name") == "owner/name"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write .*file/nullbooth\.yaml: ") as caught:
        write_files(tmp_path / "file", {"nullbooth.yaml": b""})
    assert caught.value.hint == "name a folder that you can write to"
