"""Reads the options of `nullbooth refit`, and draws its answer."""

from typing import TYPE_CHECKING, Any, Literal

from nullbooth_cli.commands.tables import table
from nullbooth_cli.errors import ConfigError

if TYPE_CHECKING:
    from nullbooth_cli.training.refit import RefitReport


def weight_of(m: str) -> float | Literal["auto"]:
    """The value of --m. Raises ConfigError for one that is neither auto nor a number."""
    if m == "auto":
        return "auto"
    try:
        return float(m)
    except ValueError as error:
        raise ConfigError(f"--m {m} is not a number", "set it to auto, or to a number such as 10") from error


def draw(report: "RefitReport") -> list[Any]:
    """The ladder, with the change as it was first and the chosen m marked; below, the result."""
    rungs = sorted({rung.m: rung for rung in (*report.ladder, report.chosen)}.values(), key=lambda rung: rung.m)
    rows = [["as it is", "0", "0", f"{report.drift_before:.3g}", f"{report.largest_drift_before:.3g}", ""]]
    for rung in rungs:
        values = (rung.missing, rung.largest_missing, rung.drift, rung.largest_drift)
        mark = "chosen" if rung.m == report.m else ""
        rows.append([f"{rung.m:g}", *(f"{value:.3g}" for value in values), mark])
    columns = ["m", "missing", "largest", "drift", "largest", ""]
    return [table(columns, rows, right=frozenset(range(5))), str(report), *([report.output] if report.output else [])]
