"""Reports of the stages as lines and tables."""

import math
from typing import Any

from nullbooth_cli.commands.tables import table
from nullbooth_cli.formatting import aligned, duration, operations, size
from nullbooth_cli.report.inspection import InspectReport
from nullbooth_cli.report.plan import PlanReport
from nullbooth_cli.report.schedule import ScheduleReport
from nullbooth_cli.report.status import StageAnswer


def draw_schedule(report: ScheduleReport) -> Any:
    """A row for each step."""
    timesteps = aligned([step.timestep for step in report.steps])
    rows = [
        [str(step.index), step.key, timestep, "" if math.isnan(step.sigma) else f"{step.sigma:.4f}"]
        for step, timestep in zip(report.steps, timesteps, strict=True)
    ]
    return table(["step", "key", "timestep", "sigma"], rows, right=frozenset({0, 2, 3}))


def summary_line(report: InspectReport) -> str:
    """The totals of all projectors in one line."""
    totals, rule = report.totals, report.rule
    heldout = totals.largest_heldout_leakage
    on_heldout = "" if heldout is None else f", on held-out prompts {heldout:.2g}"
    return (
        f"{report.store}: {totals.sites} sites for {totals.weights} weights, {rule.name} {rule.value:g}: "
        f"{totals.null_dim} of {totals.dim} dimensions are null, leakage at most {totals.largest_leakage:.2g}{on_heldout}"
    )


def draw_stage(answer: StageAnswer) -> str:
    """The state of a stage in one line."""
    return (
        f"{answer.store}: {answer.stage} {answer.state}, {answer.units_done} of {answer.units_total} units, {size(answer.bytes)}"
    )


def draw_plans(report: PlanReport) -> Any:
    """A row for each stage: units, time and bytes that it needs, and the bytes that are free."""
    rows = [
        [
            plan.stage,
            str(plan.units_done),
            str(plan.units_total - plan.units_done),
            "?" if plan.seconds is None else duration(plan.seconds),
            "" if plan.operations is None else operations(plan.operations),
            size(plan.bytes_needed),
            "?" if plan.bytes_free is None else size(plan.bytes_free),
            plan.device,
            size(plan.device_bytes_needed),
            size(plan.device_bytes_free),
        ]
        for plan in report.stages.values()
    ]
    columns = ["stage", "done", "to do", "time", "operations", "needs", "free", "device", "sums there", "free there"]
    return table(
        columns, rows, right=frozenset({1, 2, 3, 4, 5, 6, 8, 9}), drop=("operations", "sums there", "free there", "device")
    )
