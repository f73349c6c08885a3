"""The small store that most of these tests change."""

from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.stores import small_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sites, five prompts, two a unit, three timesteps, float32; no features are written."""
    return small_store(tmp_path)
