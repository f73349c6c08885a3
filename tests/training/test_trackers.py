"""Trackers by name: accelerate's, missing packages, and those that do not start."""

from pathlib import Path
from typing import get_args

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.recipe import Recipe, Tracker
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.training import setup
from tests.support.tiny_dreambooth import recipe, run


def test_the_names_are_accelerates() -> None:
    assert set(get_args(Tracker)) == set(LOGGER_TYPE_TO_CLASS)


def test_the_former_key() -> None:
    with pytest.raises(ConfigError, match="unknown key 'tensorboard'") as caught:
        validate(Recipe, {"tensorboard": True})
    assert caught.value.hint == "write report_to: tensorboard"


def test_one_or_several() -> None:
    assert recipe(Path()).trackers == ()
    assert validate(Recipe, {"report_to": "wandb"}).trackers == ("wandb",)
    assert validate(Recipe, {"report_to": ["wandb", "aim"]}).trackers == ("wandb", "aim")


def test_a_package_that_is_missing_is_known_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullbooth_cli.model.load.load_pipeline", None)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    with pytest.raises(ConfigError, match="report_to: aim, tensorboard needs a package that is not installed") as caught:
        setup.set_up(recipe(tmp_path, report_to=["aim", "wandb", "tensorboard"]), "cpu")
    assert caught.value.hint == "pip install -U aim tensorboardX accelerate"


def test_tensorboard(tmp_path: Path) -> None:
    run(recipe(tmp_path, report_to="tensorboard"))
    assert list((tmp_path / "logs").rglob("events*"))


def test_one_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoAccount(Exception):
        pass

    def raise_own(*_: object, **__: object) -> None:
        raise NoAccount("no API key configured\nmore")

    monkeypatch.setattr(Accelerator, "init_trackers", raise_own)
    with pytest.raises(ConfigError, match=r"report_to: tensorboard cannot be started: no API key configured$") as caught:
        run(recipe(tmp_path, report_to="tensorboard"))
    assert "set report_to to null" in caught.value.hint
