"""Reports as lines and tables."""

from types import SimpleNamespace
from typing import Any, cast

from nullbooth_cli.commands.draw import draw_schedule, draw_stage, warning_lines
from nullbooth_cli.datatypes import Step
from nullbooth_cli.report.schedule import ScheduleReport
from nullbooth_cli.report.status import StageAnswer
from tests.support.reports import site_report


def report_of(*sites: Any) -> Any:
    return SimpleNamespace(sites=sites)


def test_warnings_that_differ_in_numbers_only_are_one_line() -> None:
    """The site that leaks most stands for all of them."""
    sites = [
        site_report(layer=f"layer{number}", leakage=leakage, warnings=(f"leakage {leakage:.2g}, more than 0.1", *others))
        for number, (leakage, others) in enumerate([(0.16, ()), (0.21, ("7,680 vectors",)), (0.12, ()), (0.12, ())])
    ]
    assert warning_lines(report_of(*sites)) == [
        "leakage 0.21, more than 0.1: layer1.q and 3 more sites (--json names them)",
        "7,680 vectors: layer1.q",
    ]


def test_a_site_without_warnings_has_no_line() -> None:
    assert warning_lines(report_of(site_report(warnings=()))) == []


def test_a_step_without_sigma_has_an_empty_cell() -> None:
    steps = (Step(0, "alpha_00_9e2", 999.0, 14.61234), Step(1, "alpha_01_1e1", 12.5, float("nan")))
    drawn = draw_schedule(cast(ScheduleReport, SimpleNamespace(steps=steps)))
    assert [list(map(str, column.cells)) for column in drawn.columns] == [
        ["0", "1"],
        ["alpha_00_9e2", "alpha_01_1e1"],
        ["999.0", "12.5"],
        ["14.6123", ""],
    ]


def test_a_stage_is_one_line() -> None:
    answer = StageAnswer(store="run.zarr", stage="collect", state="partial", units_done=1, units_total=3, bytes=2_500_000)
    assert draw_stage(answer) == "run.zarr: collect partial, 1 of 3 units, 2.5 MB"
