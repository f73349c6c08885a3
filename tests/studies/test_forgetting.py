"""The study of forgetting against learning: its table counts right, and it resumes where it stopped."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.studies import forgetting
from docs.studies.forgetting import Point


def test_of_equally_learned_checkpoints_the_least_forgotten_counts() -> None:
    def point(seed: int, step: int, learned: float, forgotten: float, arm: str = "one") -> Point:
        return Point(
            arm=arm,
            rate=1e-3,
            seed=seed,
            step=step,
            learned=learned,
            forgotten=forgotten,
            forgotten_class=0.0,
            accuracy=1.0,
            drift=None,
        )

    points = [point(0, 50, 0.3, 2.0), point(0, 100, 0.6, 1.0), point(0, 200, 0.2, 0.1), point(1, 50, 0.4, 3.0)]
    assert forgetting.least_forgotten(points, "one", 0, 0.25) == 1.0
    assert math.isnan(forgetting.least_forgotten(points, "one", 1, 0.5))
    row = forgetting.table([*points, point(0, 50, 1.0, 9.0, "two")])[2]
    assert row == "| one | 0.50 (0.40 to 0.60) | 2 (1 to 3) | 1 (1 to 1, 1 of 2 seeds) | - |"


def test_a_study_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "CHECKPOINTS", (1, 2))
    monkeypatch.setattr(forgetting, "STEPS", 2)
    app = forgetting.typer.Typer()
    app.command()(forgetting.main)
    command = [str(tmp_path), "--seed", "3", "--only", "word alone"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "| word alone | 0.00 (0.00 to 0.00) | - | - | - |" in result.stdout
    [file] = (tmp_path / "runs").glob("*.json")
    points = [Point(**point) for point in json.loads(file.read_text())]
    assert [(p.arm, p.seed, p.step) for p in points] == [("word alone", 3, 1), ("word alone", 3, 2)]
    # The word is in none of the captions that are scored, and no weight has moved.
    assert max(p.forgotten for p in points) < 1e-6
    assert (tmp_path / "study.png").stat().st_size > 10_000
    monkeypatch.setattr(forgetting, "run", lambda *_, **__: pytest.fail("run again"))
    assert CliRunner().invoke(app, command, catch_exceptions=False).stdout == result.stdout
