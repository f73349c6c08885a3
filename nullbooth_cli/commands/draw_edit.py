"""Draws the answer of `nullbooth edit`: the verdicts, the pairs, and the edit under other thresholds."""

from collections.abc import Sequence
from typing import Any

from nullbooth_cli.commands.tables import table
from nullbooth_cli.editing.reach import EditRung
from nullbooth_cli.editing.report import several
from nullbooth_cli.editing.verdict import reach_word
from nullbooth_cli.formatting import counted
from nullbooth_cli.report.answers import EditAnswer

SHOWN = 20  # pairs


def draw_edit(answer: EditAnswer) -> list[Any]:
    """The verdicts; of several pairs those that are not reached; the ladder, if there is one; and the folder."""
    would = "would be edited" if answer.output is None else "edited"
    after = f", after {answer.after}" if answer.after else ""
    lines: list[Any] = [
        *(f"{answer.store} remembers {name} now" for name in answer.remembered),
        f"{counted(len(answer.pairs), 'prompt')} {would} in {len(answer.weights)} weights ({answer.method}{after})",
        *(line for verdict in answer.verdicts for line in verdict.lines),
    ]
    if len(answer.by_pair) > 1:
        lines += ["", _pairs(answer)]
    if answer.ladder:
        lines += ["", _ladder(answer.ladder)]
    return [*lines, *([answer.output] if answer.output else [])]


def _pairs(answer: EditAnswer) -> Any:
    """The pairs, those furthest from their targets first."""
    worst = sorted(answer.by_pair.items(), key=lambda item: -item[1])
    rows = [
        [f"{missing:.2g}", reach_word(missing), f"{source} -> {' + '.join(several(answer.pairs[source])) or 'nothing'}"]
        for source, missing in worst[:SHOWN]
    ]
    if len(worst) > SHOWN:
        rows.append(["", "", f"and {len(worst) - SHOWN} more"])
    return table(["missing", "", "prompt"], rows, right=frozenset({0}))


def _ladder(rungs: Sequence[EditRung]) -> Any:
    """What the edit would do under other thresholds, and by uce."""
    columns = ["relative_threshold", "null_dim", "missing", "", "elsewhere", "drift", "held-out"]
    rows = [
        [
            rung.method if rung.relative_threshold is None else f"{rung.relative_threshold:g}",
            "" if rung.null_dim is None else str(rung.null_dim),
            f"{rung.missing:.2g}",
            reach_word(rung.missing),
            "" if rung.elsewhere is None else f"{rung.elsewhere:.2g}",
            f"{rung.drift:.2g}",
            "" if rung.heldout is None else f"{rung.heldout:.2g}",
        ]
        for rung in rungs
    ]
    return table(columns, rows, right=frozenset({0, 1, 2, 4, 5, 6}), drop=("null_dim",))
