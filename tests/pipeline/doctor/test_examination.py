"""The results of the checks, as one examination collects them."""

from pathlib import Path

from nullbooth_cli.pipeline.doctor.examination import Examination
from nullbooth_cli.pipeline.doctor.examine import examine
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of
from tests.support.doctor import little


def test_a_new_one_has_no_results(tmp_path: Path) -> None:
    examination = Examination(lambda: (little(tmp_path / "run.zarr"), "c.yaml", None))
    assert (examination.prompts, examination.heldout, examination.store, examination.states) == ((), (), None, {})
    assert not hasattr(examination, "config")
    assert not hasattr(examination, "pipe")


def test_checks_leave_their_results_for_those_that_need_them(finished: tuple[Config, Store]) -> None:
    config, store = finished
    examination = Examination(lambda: (config, "c.yaml", None), "cpu")
    assert list(examine(examination))
    assert examination.prompts == prompts_of(config)
    assert examination.store is not None
    assert examination.store.url == store.url
    assert examination.steps == store.schedule()
    assert examination.recordable.sites == store.sites
    assert {found.state for found in examination.states.values()} == {"complete"}
    assert str(examination.device) == "cpu"
