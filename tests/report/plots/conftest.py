"""Figures as they are before they are written."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nullbooth_cli.report.plots import attention, ladder, layers, sites, timesteps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, "Figure"]:
    """Every figure that is saved, by the name of its file, instead of the file."""
    saved: dict[str, Figure] = {}

    def save(made: "Figure", path: Path) -> Path:
        made.canvas.draw()
        saved[path.name] = made
        return path

    for module in (attention, ladder, layers, sites, timesteps):
        monkeypatch.setattr(module, "save", save)
    return saved
