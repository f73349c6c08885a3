"""Where a config is looked for, and how a command line names it again."""

from pathlib import Path

import pytest

from nullbooth_cli.commands.find_config import configure, find_config, find_recipe, storage_options_of
from nullbooth_cli.commands.options import Common
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store


def test_where_a_config_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NULLBOOTH_CONFIG", raising=False)
    assert find_config(None) is None
    (tmp_path / "configs").mkdir()
    for name in ("configs/nullbooth.yaml", "nullbooth.yaml", "env.yaml", "given.yaml"):
        (tmp_path / name).write_text("model: toy")
        if name == "env.yaml":
            monkeypatch.setenv("NULLBOOTH_CONFIG", name)
        assert str(find_config(name if name == "given.yaml" else None)) == name
    with pytest.raises(ConfigError, match=r"no config file at gone\.yaml"):
        find_config("gone.yaml")


def test_where_a_recipe_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(None) is None
    for name in ("train.yaml", "given.yaml"):
        (tmp_path / name).write_text("model: toy")
    assert find_recipe(None) == Path("train.yaml")
    assert find_recipe("given.yaml") == Path("given.yaml")
    with pytest.raises(ConfigError, match=r"no file at gone\.yaml"):
        find_recipe("gone.yaml")


@pytest.fixture
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without variables that name a config or a store."""
    monkeypatch.chdir(tmp_path)
    for name in ("NULLBOOTH_CONFIG", "NULLBOOTH_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_store_contains_its_config_and_prompts(finished: tuple[Config, Store], anywhere: Path) -> None:
    config, store = finished
    found = configure(Common(store=store.url, overrides=["project.null_dim=4", "project.relative_threshold=null"]))
    assert found.prompts == store.prompts()
    assert found.config.project.null_dim == 4
    assert found.config.schedule == config.schedule
    assert found.options == ("-s", store.url, "--set", "project.null_dim=4", "--set", "project.relative_threshold=null")
    other = configure(Common(store=store.url, overrides=["original_knowledge_prompts=[a dog]"]))
    assert other.prompts is None, "the config's own are to be read"


def test_prompts_that_are_named_again_are_read_again(anywhere: Path) -> None:
    """The file may have changed since the store was made."""
    config = build_config({"store": "run.zarr", "original_knowledge_prompts": "prompts.txt"})
    Store.create("run.zarr", config.model_dump()).write_rows(0, [Prompt("a dog")])
    assert configure(Common(store="run.zarr")).prompts == (Prompt("a dog"),)
    assert configure(Common(store="run.zarr", overrides=["original_knowledge_prompts=prompts.txt"])).prompts is None


def test_a_named_config_wins_over_that_of_the_store(finished: tuple[Config, Store], anywhere: Path) -> None:
    (anywhere / "my config.yaml").write_text("model: toy\nschedule:\n  num_denoising_steps: 7\n")
    found = configure(Common(config="my config.yaml", store=finished[1].url))
    assert (found.config.schedule.num_denoising_steps, found.config.store) == (7, finished[1].url)
    assert found.options == ("-c", "my config.yaml", "-s", finished[1].url)


def test_credentials_are_not_repeated_on_the_command_line(anywhere: Path) -> None:
    (anywhere / "nullbooth.yaml").write_text("model: toy\n")
    secret = ["storage_options.secret=abc", "collect.seed=3"]
    assert configure(Common(overrides=secret)).options == ("--set", "collect.seed=3")
    assert storage_options_of(secret) == {"secret": "abc"}


def test_neither_config_nor_store(anywhere: Path) -> None:
    with pytest.raises(ConfigError, match="no config: there is neither") as wanting:
        configure(Common())
    assert wanting.value.hint == "write one with nullbooth init, give one with -c, or an existing store with -s"


def test_a_store_or_an_override_says_enough(anywhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = configure(Common(store="new.zarr", overrides=["collect.seed=3"]))
    assert found.config == build_config({"store": "new.zarr", "collect": {"seed": 3}})
    assert (found.is_default, found.options) == (True, ("-s", "new.zarr", "--set", "collect.seed=3"))
    found = configure(Common(overrides=["collect.seed=3"]))
    assert (found.config.store, found.is_default, found.options) == (Config().store, True, ("--set", "collect.seed=3"))
    monkeypatch.setenv("NULLBOOTH_STORE", "env.zarr")
    assert configure(Common()).config == build_config({"store": "env.zarr"})
    (anywhere / "nullbooth.yaml").write_text("model: other\n")
    found = configure(Common(overrides=["collect.seed=3"]))
    assert (found.config.model, found.is_default) == ("other", False), "a file in its usual place comes first"
