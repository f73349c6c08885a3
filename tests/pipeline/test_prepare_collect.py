"""What collect writes before its first unit."""

from pathlib import Path

from nullbooth_cli.progress import Note
from tests.support.builders import execute, small_config, states_of
from tests.support.stages import TINY, changed, events


def test_the_unit_size_may_change_until_something_is_collected(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    said = events(changed(config, collect__batch_size=8), store, "collect")
    assert any(isinstance(event, Note) and "batch_size stays 2" in event.text for event in said)
    assert states_of(config)["collect"] == "complete"
