"""The answer of stage schedule."""

from dataclasses import replace

from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.schedule import schedule_report
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store


def test_steps_are_those_of_the_store(finished: tuple[Config, Store]) -> None:
    config, store = finished
    report = schedule_report(config, store)
    assert report.steps == store.schedule()
    assert (report.strategy, report.scheduler) == ("DPM++ 2M Karras", "DPMSolverMultistepScheduler")
    assert [step["key"] for step in to_json(report)["steps"]] == [step.key for step in store.schedule()]


def test_a_step_without_sigma_has_null(finished: tuple[Config, Store]) -> None:
    report = schedule_report(*finished)
    without = replace(report, steps=tuple(replace(step, sigma=float("nan")) for step in report.steps))
    assert {step["sigma"] for step in to_json(without)["steps"]} == {None}
