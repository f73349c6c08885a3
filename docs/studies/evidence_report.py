"""The tables of the study of evidence, from the runs in docs/studies/evidence.jsonl: `python docs/studies/evidence_report.py`.

docs/explanation/forgetting.md and guarantee.md have them, and a test compares. Every cell is over subjects and seeds: `learned`
is a mean, what moved a median, because runs that went astray would rule a mean.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies import evidence_search
from docs.studies.evidence_outlook import CANDIDATES
from docs.studies.evidence_runs import PACKED, Point, Searched, read
from docs.studies.evidence_ways import BY_NAME, MAIN, UNTOUCHED, WAYS, Way, short

BOTH = "LoRA 4, constrained 1e-4, distilled x100"
FIRST = (  # in the first table
    *("free", "LoRA 4", "prior drawings", "distilled x1", "distilled x10", "LoRA 4, distilled x10", "LoRA 4, distilled x100"),
    *("LoRA 16, distilled x100", "LoRA 4, refitted, m = 10"),
    *("constrained 1e-3", "constrained 1e-4", "constrained 1e-5", "LoRA 4, constrained 1e-4", BOTH),
)
SHOWN = ("free", "prior drawings", "LoRA 4, distilled x100", "constrained 1e-4", "constrained 1e-5", BOTH)  # by set, by subject
COMPARED = ("free", "prior drawings", "distilled x10", "LoRA 4, distilled x10", "LoRA 4, distilled x100", BOTH)
NOT_LEARNED = 0.5  # runs with a smaller share of pictures of the subject
Table = list[str]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _number(value: float) -> str:
    """Two digits, without an exponent."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "-"
    digits = max(1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{digits}f}"


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def setting(searched: Sequence[Searched], way: str) -> str:
    """The setting that the search chose, as tables write it."""
    found, _, _ = evidence_search.chosen(searched, way)
    return f"{short(found.rate)}, {found.steps}"


def of(points: Sequence[Point], way: str, subject: str | None = None) -> list[Point]:
    """The runs of a way, on one subject or on all."""
    return [point for point in points if point.way == way and subject in (None, point.subject)]


def ways(searched: Sequence[Searched], points: Sequence[Point], names: Sequence[str]) -> Table:
    """A row for each way: what it learned, and what it did to other prompts."""
    heads = ["way", "rate, steps", "learned", "not learned", "moved", "distance", "own class", "right", "another word"]
    rows = []
    for name in names:
        found = of(points, name)
        moved = [point.moved["held-out"] for point in found]
        low, high = min(moved), max(moved)
        rows.append(
            [
                name,
                setting(searched, name),
                f"{np.mean([point.learned for point in found]):.2f}",
                f"{sum(point.learned < NOT_LEARNED for point in found)} of {len(found)}",
                f"{_number(_median(moved))} ({_number(low)} to {_number(high)})",
                _number(math.sqrt(_median(moved))),
                _number(_median([point.moved["own class"] for point in found])),
                f"{np.mean([point.right['held-out'] for point in found]):.2f}",
                f"{np.mean([point.other for point in found]):.2f}",
            ]
        )
    return _table(heads, rows)


def searched_ways(searched: Sequence[Searched], names: Sequence[str]) -> Table:
    """A row for each way that was only searched: the best setting, on the pictures of the search."""
    rows = []
    for name in names:
        _, learned, moved = evidence_search.chosen(searched, name)
        rows.append([name, setting(searched, name), f"{learned:.2f}", _number(moved), _number(math.sqrt(moved))])
    return _table(["way", "rate, steps", "learned", "moved", "distance"], rows)


def by_set(points: Sequence[Point]) -> Table:
    """A row for each set of prompts: what the ways `SHOWN` moved, and what they draw right."""
    before = of(points, UNTOUCHED.name)
    rows = []
    for name in before[0].moved:
        cells = [name, _right(before, name)]
        for way in SHOWN:
            found = of(points, way)
            right = _right(found, name)
            moved = _median([point.moved[name] for point in found if _counts(point, name)])
            cells.append(_number(moved) + (f" [{right}]" if right else ""))
        rows.append(cells)
    return _table(["prompts", "untouched", *SHOWN], rows)


def _right(points: Sequence[Point], name: str) -> str:
    shares = [point.right[name] for point in points if name in point.right and _counts(point, name)]
    return f"{np.mean(shares):.2f}" if shares else ""


def _counts(point: Point, name: str) -> bool:
    """Whether a set is one of prompts to keep: the word of the style means the style before other things too."""
    return not (name == "word before others" and point.subject == "style")


def by_subject(points: Sequence[Point]) -> Table:
    """A row for each subject: what the ways `SHOWN` learned, and what they moved on held-out prompts."""
    rows = []
    for subject in dict.fromkeys(point.subject for point in points):
        cells = [subject]
        for way in SHOWN:
            found = of(points, way, subject)
            learned = float(np.mean([point.learned for point in found]))
            cells.append(f"{learned:.2f}, {_number(_median([point.moved['held-out'] for point in found]))}")
        rows.append(cells)
    return _table(["subject", *SHOWN], rows)


def ratios(points: Sequence[Point], way: str, other: str, name: str = "held-out") -> list[float]:
    """How many times as much another way moved, for every subject and seed."""
    theirs = {(point.subject, point.seed): point.moved[name] for point in of(points, other)}
    return [theirs[point.subject, point.seed] / point.moved[name] for point in of(points, way)]


def compared(points: Sequence[Point]) -> Table:
    """How many times as much other ways moved as a constraint did, pair by pair."""
    constraints = ("constrained 1e-4", "constrained 1e-5")
    rows = []
    for other in COMPARED:
        for name in ("held-out", "another order", "a place", "two things"):
            cells = [other, name]
            for way in constraints:
                found = ratios(points, way, other, name)
                cells.append(f"{_number(_median(found))} ({_number(min(found))} to {_number(max(found))})")
            rows.append(cells)
    return _table(["way", "prompts", *(f"over {way}" for way in constraints)], rows)


def guarantee(points: Sequence[Point]) -> Table:
    """A row for each kind of constraint: the drift of weights, measured, predicted, bounded, and in saved files."""
    heads = [
        "constraint",
        "weights",
        "largest drift",
        "measured / `drift()`",
        "bound / `drift()`",
        "saved in float16",
        "in bfloat16",
    ]
    rows = []
    for way in WAYS:
        found = [point.drifts for point in of(points, way.name) if point.drifts is not None]
        if not found:
            continue
        measured, predicted, bound = (np.array([each[name] for each in found]) for name in ("measured", "predicted", "bound"))
        exact, loose = measured / predicted, bound / predicted
        rows.append(
            [
                way.name,
                str(measured.size),
                f"{_number(np.median(measured.max(1)))} (at most {_number(measured.max())})",
                f"{exact.min():.4f} to {exact.max():.4f}",
                f"{np.median(loose):.1f} ({loose.min():.1f} to {loose.max():.1f})",
                *(_number(float(np.median([each[name] for each in found]))) for name in ("float16", "bfloat16")),
            ]
        )
    return _table(heads, rows)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, with the mean rank for ties; NaN if one of the two is constant."""

    def ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        array = np.asarray(values)
        return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])

    left, right = ranks(one), ranks(other)
    if left.std() == 0 or right.std() == 0:
        return math.nan
    return float(np.corrcoef(left, right)[0, 1])


TRAINED: Mapping[str, Callable[[Way], bool]] = {
    "k and v, with the word": lambda way: way.rank is None and way.word and way.distilled is None,
    "k and v, without": lambda way: way.rank is None and not way.word,
    "LoRA, with the word": lambda way: way.rank is not None and way.distilled is None,
    "distilled as well": lambda way: way.distilled is not None,
}


def _groups(points: Sequence[Point], kind: str) -> dict[tuple[str, str], list[Point]]:
    """The runs of each way and subject, of one kind of what trains, that have an outlook."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        if point.outlook is not None and TRAINED[kind](BY_NAME[point.way]):
            found.setdefault((point.way, point.subject), []).append(point)
    return found


def outlook(points: Sequence[Point]) -> Table:
    """Rank correlation of each number that is known before training with what was learned, over subjects and thresholds.

    A subject and way is one value, the mean over seeds. The last column is no such number: what free training learned, a
    LoRA of rank 4 for LoRAs.
    """
    rows = []
    for kind in TRAINED:
        groups = _groups(points, kind)
        learned = [float(np.mean([point.learned for point in group])) for group in groups.values()]
        cells = [kind, str(len(groups))]
        for name in CANDIDATES:
            values = [float(np.mean([(point.outlook or {})[name] for point in group])) for group in groups.values()]
            cells.append(_correlation(values, learned))
        unbound = [_free(points, BY_NAME[way], subject) for way, subject in groups]
        rows.append([*cells, _correlation(unbound, learned)])
    return _table(["what trains", "values", *CANDIDATES, "free training"], rows)


def _correlation(one: Sequence[float], other: Sequence[float]) -> str:
    found = rank_correlation(one, other)
    return "-" if math.isnan(found) else f"{found:.2f}"


def _free(points: Sequence[Point], way: Way, subject: str) -> float:
    name = "LoRA 4" if way.rank else "free" if way.word else "free, no word"
    return float(np.mean([point.learned for point in of(points, name, subject)]))


def count_learned(points: Sequence[Point], *, word: bool, least: float = 0.0) -> tuple[int, int]:
    """How many pairs of subject and threshold were learned by k and v, of how many that had a ratio of `least` or more."""
    groups = _groups(points, "k and v, with the word" if word else "k and v, without")
    tried = [group for group in groups.values() if np.mean([(point.outlook or {})["ratio"] for point in group]) >= least]
    return sum(bool(np.mean([point.learned for point in group]) >= NOT_LEARNED) for group in tried), len(tried)


def tables(searched: Sequence[Searched], points: Sequence[Point]) -> dict[str, Table]:
    """Every table, by its name."""
    others = [way.name for way in WAYS if way.name not in MAIN]
    return {
        "ways": ways(searched, points, FIRST),
        "more ways": ways(searched, points, [name for name in MAIN if name not in FIRST]),
        "compared": compared(points),
        "by set": by_set(points),
        "by subject": by_subject(points),
        "searched": searched_ways(searched, others),
        "guarantee": guarantee(points),
        "outlook": outlook(points),
    }


def main() -> None:
    """Print every table."""
    for name, lines in tables(*read([PACKED])).items():
        typer.echo("\n".join([name, "", *lines, ""]))


if __name__ == "__main__":
    typer.run(main)
