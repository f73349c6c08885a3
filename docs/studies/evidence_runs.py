"""The runs of the study of evidence: which there are, what is kept of each, and the file that the pages are made from.

A batch of runs is one file in the study's folder; `docs/studies/evidence.jsonl` has all of them, with four digits.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKED = Path(__file__).with_name("evidence.jsonl")
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A learning rate and a number of optimizer steps."""

    rate: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A run of the search: `learned` and `moved` on the validation pictures, at each of `LENGTHS`."""

    way: str
    subject: str
    rate: float
    learned: tuple[float, ...]
    moved: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run of the report.

    `moved`: squared distance of latents to the untouched model, from the same noise, over that of another seed, by set. `right`:
    the share of pictures that show all that their caption names. `learned`: the share of pictures that show the subject; `other`:
    with another unknown word in place of its own. `drifts` are `evidence_score.Drifts`, of constrained runs; `outlook` are
    numbers that were known before training, by name.
    """

    way: str
    subject: str
    seed: int
    rate: float
    steps: int
    learned: float
    other: float
    moved: Mapping[str, float]
    right: Mapping[str, float]
    drifts: Mapping[str, Any] | None = None
    outlook: Mapping[str, float] | None = None


def rounded(value: Any) -> Any:
    """A document with every number at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def write(path: Path, found: Iterable[Point | Searched]) -> None:
    """Write runs, a line each; the file is there whole or not at all."""
    lines = [json.dumps({k: v for k, v in rounded(asdict(each)).items() if v is not None}) for each in found]
    path.with_suffix(".partial").write_text("".join(line + "\n" for line in lines))
    path.with_suffix(".partial").rename(path)


def read(paths: Sequence[Path]) -> tuple[list[Searched], list[Point]]:
    """The runs of the search and of the report."""
    searched, points = [], []
    for line in (line for path in paths for line in path.read_text().splitlines()):
        found = json.loads(line)
        if "seed" in found:
            points.append(Point(**found))
        else:
            searched.append(Searched(**{**found, "learned": tuple(found["learned"]), "moved": tuple(found["moved"])}))
    return searched, points
