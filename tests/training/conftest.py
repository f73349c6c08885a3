"""Fixtures of training: a store whose null spaces are exact, the model before training, and two runs of DreamBooth."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.tiny_dreambooth import recipe, run
from tests.support.tiny_training import exact_store, fresh_unet


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read only."""
    return exact_store(tmp_path_factory.mktemp("exact") / "run.zarr")


@pytest.fixture
def store(exact: Store) -> nb.OpenStore:
    """The same store, open as users open it."""
    return nb.open_store(exact.path)


@pytest.fixture(scope="session")
def before() -> dict[str, torch.Tensor]:
    """The weights of the model before training."""
    return {name: tensor.clone() for name, tensor in fresh_unet().state_dict().items()}


@pytest.fixture(scope="session")
def free_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Without a store."""
    return run(recipe(tmp_path_factory.mktemp("free")))


@pytest.fixture(scope="session")
def constrained_run(tmp_path_factory: pytest.TempPathFactory, finished: tuple[Config, Store]) -> dict[str, Any]:
    """The same recipe with a store."""
    return run(recipe(tmp_path_factory.mktemp("constrained"), store=str(finished[1].path)))
