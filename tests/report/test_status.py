"""The state of the stages, and whether all of a store can be read."""

import shutil
from pathlib import Path

from nullbooth_cli.pipeline.state import Difference, StageState, stage_states
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.status import stage_answer, stage_report, status_report, verify_store
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of

Run = tuple[Config, Store]


def test_bytes_and_units_are_those_of_the_store(finished: Run) -> None:
    config, store = finished
    states = stage_states(config, prompts_of(config), store)
    report = status_report(store.url, store, states)
    assert list(report.stages) == list(STAGES)
    for stage, found in report.stages.items():
        assert (found.state, found.units_done) == ("complete", states[stage].units_done)
        assert stage_answer(stage, states[stage], store).bytes == found.bytes
    assert report.stages["covariance"].bytes == store.nbytes("moments")
    assert "verify" not in to_json(report)


def test_before_there_is_a_store(finished: Run) -> None:
    config = finished[0]
    report = status_report("nowhere", None, stage_states(config, prompts_of(config), None))
    assert {found.state for found in report.stages.values()} == {"missing"}
    assert {found.bytes for found in report.stages.values()} == {0}


def test_parts_of_a_stage_have_keys_only_where_there_are_any() -> None:
    heldout = StageState(stage="collect", state="partial", units_done=1, units_total=None)
    because = (Difference("collect.seed", 0, 1),)
    state = StageState(stage="collect", state="stale", units_done=2, units_total=3, stale_because=because, heldout=heldout)
    found = to_json(stage_report(None, "collect", state))
    assert found == {
        "state": "stale",
        "units_done": 2,
        "units_total": 3,
        "bytes": 0,
        "stale_because": [{"field": "collect.seed", "old": 0, "new": 1}],
        "heldout": {"state": "partial", "units_done": 1, "units_total": None},
    }


def test_everything_can_be_read(finished: Run) -> None:
    found = verify_store(finished[1])
    assert found.damaged == ()
    assert found.checked > len(finished[1].sites)


def test_a_damaged_piece_is_named_with_its_hint(finished: Run, tmp_path: Path) -> None:
    place = Path(shutil.copytree(finished[1].path, tmp_path / "run.zarr"))
    chunk = max((path for path in (place / "moments").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"")
    store = Store.open(str(place))
    (piece,) = verify_store(store).damaged
    assert piece.stage == "covariance"
    assert "nb.run" in piece.hint
    (again,) = verify_store(store, lambda error: f"phrased: {error.message}").damaged
    assert again.hint == f"phrased: {piece.error}"
