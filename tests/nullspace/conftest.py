"""Fixtures of the mathematics: a small store with moments, to be projected in several ways."""

from pathlib import Path

import pytest

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Config, Store]:
    """The moments of one layer."""
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"], collect__batch_size=2)
    return config, execute(config, "collect", "covariance")
