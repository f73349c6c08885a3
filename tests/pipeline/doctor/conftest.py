"""A run whose first of two units is collected."""

from pathlib import Path

import pytest

from nullbooth_cli.settings.config import Config
from tests.support.builders import execute
from tests.support.doctor import little


@pytest.fixture
def begun(tmp_path: Path) -> Config:
    """A run whose first of two units is collected."""
    config = little(tmp_path / "run.zarr")
    execute(config, "schedule", "collect", limit=1)
    return config
