"""Fixtures of evaluation: one run, and edited models of it."""

from pathlib import Path

import pytest

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.edited_models import collected_run, save_edited_models


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """Read only: a test that changes a store makes its own."""
    return collected_run(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def models(run: tuple[Config, Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the edited models `constrained`, `free` and `lora`."""
    folder = tmp_path_factory.mktemp("models")
    save_edited_models(run[1], folder)
    return folder
