"""What a plan says is what a run takes."""

from pathlib import Path
from typing import Any

from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.settings.config import STAGES
from tests.support.builders import prompts_of, small_config
from tests.support.stages import TINY


def test_the_planned_bytes_are_the_written_bytes(tmp_path: Path, tiny: Any) -> None:
    _, store = tiny
    fresh = small_config(tmp_path / "fresh.zarr", **TINY)
    planned = {p.stage: p for p in plan(STAGES, fresh, prompts_of(fresh), None, device="cpu")}
    for stage, folder in (("collect", "features"), ("covariance", "moments"), ("project", "projectors")):
        assert planned[stage].units_total == len(store.progress.done(stage))
        # Metadata, checksums and counts come on top.
        assert 0 <= store.nbytes(folder) - planned[stage].bytes_needed < 0.35 * planned[stage].bytes_needed + 60_000
    assert not Path(fresh.store).exists()
