"""The embedded model in every form that people have."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nullbooth_cli.model import load
from tests.support.loading import HUB
from tests.support.model_files import copy_folder, hub_cache, pickle_folder, save_single_file

REAL = load.load_pipeline  # before tests/conftest.py replaces it


@pytest.fixture(autouse=True)
def _every_load_reads_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_pipeline", REAL)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """The embedded model in every form: its name, and what must be set beside it. The last is in the cache of the hub."""
    folder = tmp_path_factory.mktemp("kinds")
    hub_cache(folder / "cache", HUB)
    return {
        "folder": (str(copy_folder(folder / "moved")), {}),
        "pickled folder": (str(pickle_folder(copy_folder(folder / "pickled"))), {"allow_pickle": True}),
        "single file": (str(save_single_file(pipe, folder / "one.safetensors")), {"pipeline_config": "toy"}),
        "checkpoint": (str(save_single_file(pipe, folder / "one.ckpt")), {"pipeline_config": "toy", "allow_pickle": True}),
        "hub": (HUB, {}),
    }


@pytest.fixture
def cache(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(kinds["folder"][0]).parent / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder
