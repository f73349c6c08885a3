"""Collected tiny pipelines, each once, and kohya's `networks` as stand-ins."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import kohya_networks
from tests.support.tiny_collected import Collected, collected


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Collected]:
    """The pipeline of a name and its finished store."""
    made: dict[str, Collected] = {}
    folder = tmp_path_factory.mktemp("collected")

    def get(name: str) -> Collected:
        if name not in made:
            made[name] = collected(name, folder)
        return made[name]

    return get


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """kohya's modules of networks, by their last name."""
    if kohya_networks.CHECKOUT:
        return kohya_networks.checkout_on_path(monkeypatch)
    return kohya_networks.put_on_path(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"
