"""Reports as lines and tables."""

from types import SimpleNamespace
from typing import cast

from nullbooth_cli.commands.draw import draw_schedule, draw_stage
from nullbooth_cli.datatypes import Step
from nullbooth_cli.report.schedule import ScheduleReport
from nullbooth_cli.report.status import StageAnswer


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
