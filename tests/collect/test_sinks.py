"""What sinks store: every chunk once, and nothing of a unit whose write has failed."""

from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.store import Store
from nullbooth_cli.store.feature_arrays import FeatureArrays
from tests.support.builders import execute, small_config


def test_every_chunk_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int, int]] = []
    real = FeatureArrays.write

    def recorded(self: Store, site: Site, block: range, rows: list[int], values: Any) -> None:
        written.extend((site.name, step, rows[0] // 3) for step in block)
        real(self, site, block, rows, values)

    monkeypatch.setattr(FeatureArrays, "write", recorded)
    store = execute(small_config(tmp_path / "run.zarr", collect__cross_attention_layers=[0, "mid_block*"]), "collect")
    steps = {site.name: range(1 if site.timestep_free else 4) for site in store.sites}
    assert sorted(written) == sorted((name, t, unit) for name, ts in steps.items() for t in ts for unit in range(3))


def test_a_failed_write_stops_the_run_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ResourceError("the disk is gone", "plug it in")

    monkeypatch.setattr(FeatureArrays, "write", fail)
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"])
    with pytest.raises(ResourceError, match="the disk is gone"):
        execute(config, "collect")
    assert not Store.open(config.store).progress.done("collect").any()
