"""Whether a model is the one that a store was collected with."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import StageError
from tests.support.builders import execute, small_config
from tests.support.stages import TINY, events


def test_a_changed_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    monkeypatch.setattr("nullbooth_cli.model.load.weights_digest", lambda pipe, **_: "another")
    with pytest.raises(StageError, match=r"weights .* -> another"):
        events(config, store, "collect")
