"""The answer of `nullbooth evaluate RUN --checkpoints`."""

from collections.abc import Sequence
from typing import Any

from nullbooth_cli.commands.tables import table
from nullbooth_cli.evaluation.checkpoints import CheckpointScore, CheckpointsReport
from nullbooth_cli.evaluation.verdict import Question


def draw_checkpoints(report: CheckpointsReport) -> list[Any]:
    """A row for each checkpoint; below, the best, why it is, and its verdicts."""
    asked = {verdict.question for score in report.checkpoints for verdict in score.verdicts}
    questions: tuple[Question, ...] = ("learned", "forgotten", "earlier") if "earlier" in asked else ("learned", "forgotten")
    columns = ["step", *(cell for question in questions for cell in (question, "")), "drift", ""]
    drifts = ["" if score.drift is None else f"{score.drift:.2g}" for score in report.checkpoints]
    rows = [
        [str(score.step), *_cells(score, questions), drift, _mark(report, score)]
        for score, drift in zip(report.checkpoints, drifts, strict=True)
    ]
    drawn = table(columns, rows, right=frozenset((0, *range(1, len(columns), 2))))
    return [drawn, *_best_lines(report)]


def _cells(score: CheckpointScore, questions: Sequence[Question]) -> list[str]:
    """The value of each verdict with its word; nothing for what was not measured."""
    found = {verdict.question: (f"{verdict.value:.3g}", verdict.word) for verdict in score.verdicts}
    return [cell for question in questions for cell in found.get(question, ("", ""))]


def _mark(report: CheckpointsReport, score: CheckpointScore) -> str:
    return "best" if report.best is not None and report.best.step == score.step else ""


def _best_lines(report: CheckpointsReport) -> Sequence[str]:
    best = report.best
    if best is None:
        return [f"no best checkpoint: learned was not measured: {report.not_measured['learned']}"]
    first = f"best: step {best.step}, {best.rule}; measured again from other noise:"
    return [first, *(f"  {line}" for verdict in best.verdicts for line in verdict.lines)]
