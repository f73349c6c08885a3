"""The picture of a budget: its lines are the numbers of the tasks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.nullspace.budget import TaskAtSite, TaskBudget
from nullbooth_cli.report.plots import tasks as module
from nullbooth_cli.report.plots.tasks import draw_budget


def task(name: str, *sites: tuple[int, int, float]) -> TaskBudget:
    every = {"key": "pooled", "step_index": None, "timestep": None, "dim": 100, "preserved_energy": 0.0, "leakage": 0.1}
    found = [
        TaskAtSite(site=f"s{i}", null_dim_before=before, null_dim=after, energy=energy, heldout_energy=energy / 2, **every)
        for i, (before, after, energy) in enumerate(sites)
    ]
    return TaskBudget(name=name, kind="hard" if sites else "soft", weight=1, source="x", prompts=1, sites=tuple(found))


def test_its_lines_are_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def save(made: Any, path: Path) -> Path:
        kept.append(made)
        return path

    monkeypatch.setattr(module, "save", save)
    several = [task("dog", (44, 41, 0.2), (20, 19, 0.4)), task("edit"), task("cat", (41, 40, 0.1), (19, 17, 0.1))]
    draw_budget(several, tmp_path / "tasks.png")
    room, energy = kept[0].axes
    lines = [line.get_ydata() for line in room.lines]
    np.testing.assert_allclose(lines, [[44, 41, 40], [20, 19, 17], [32, 30, 28.5]])
    np.testing.assert_allclose([line.get_ydata() for line in energy.lines], [[0.2, 0.1], [0.4, 0.1], [0.3, 0.1], [0.15, 0.05]])


def test_a_file_is_drawn(tmp_path: Path) -> None:
    assert draw_budget([task("dog", (44, 41, 0.2))], tmp_path / "tasks.png").stat().st_size > 5_000


@pytest.mark.parametrize("names", [["preserved", "x" * 64, "cat"], [f"subject-number-{i}" for i in range(20)]])
def test_names_do_not_lie_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(module, "save", lambda made, path: kept.append(made) or path)
    draw_budget([task(name, (44, 41, 0.2)) for name in names], tmp_path / "tasks.png")
    kept[0].canvas.draw()
    for drawn in kept[0].axes:
        boxes = [label.get_window_extent() for label in drawn.get_xticklabels()]
        assert len(boxes) >= 4
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
