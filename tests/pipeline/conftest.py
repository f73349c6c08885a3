"""One small finished run, which a test may change."""

from pathlib import Path

import pytest

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config
from tests.support.stages import TINY


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Config, Store]:
    config = small_config(tmp_path / "run.zarr", **TINY)
    return config, execute(config, "collect", "covariance", "project")
