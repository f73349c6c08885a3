"""Pictures of change over timesteps: their values are those of the sites."""

from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.report.plots import timesteps
from tests.support.reports import LAYER, site_over_timesteps, site_report

UP = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
EVOLUTIONS = [site_over_timesteps(), site_over_timesteps(UP, null_dim=(1, 2, 3)), site_over_timesteps(UP, "out")]


def path(name: str) -> Path:
    return Path(f"{name}.png")


def test_a_map_for_each_feature(figures: dict[str, Any]) -> None:
    assert [made.name for made in timesteps.draw_maps(EVOLUTIONS, path)] == ["timesteps-q.png", "timesteps-out.png"]
    null_dim, rank = (axes for axes in figures["timesteps-q.png"].axes if axes.images)
    np.testing.assert_allclose(null_dim.images[0].get_array(), [[37.5, 50, 62.5], [12.5, 25, 37.5]])
    np.testing.assert_allclose(rank.images[0].get_array(), np.full((2, 3), 25.0))
    assert [label.get_text() for label in null_dim.get_yticklabels()] == ["mid 0.0", "up 0.0.0"]


def test_lines_over_the_timesteps(figures: dict[str, Any]) -> None:
    timesteps.draw_evolution(EVOLUTIONS, path("evolution"))
    first = figures["evolution.png"].axes[0]
    assert [line.get_label() for line in first.get_lines()] == ["mid 0.0", "up 0.0.0"]
    np.testing.assert_allclose(first.get_lines()[0].get_ydata(), [37.5, 50, 62.5])
    assert first.xaxis_inverted(), "denoising goes from the large timesteps to the small"
    assert len(figures["evolution.png"].axes) == 6, "three quantities of two features"


def test_pooled_entries_are_diamonds(figures: dict[str, Any]) -> None:
    entries = [site_report(), site_report(timestep=900.0), site_report(LAYER, "k")]
    timesteps.draw_distribution(EVOLUTIONS, entries, path("distribution"))
    drawn = figures["distribution.png"].axes[0]
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["q", "out", "k"]
    diamonds = [list(line.get_ydata()) for line in drawn.get_lines() if line.get_marker() == "D"]
    assert diamonds == [[37.5], [], [37.5]], "an entry of one timestep is not pooled"


def test_overlap_of_timesteps(figures: dict[str, Any]) -> None:
    list(timesteps.draw_similarity(EVOLUTIONS, path))
    panels = [axes for axes in figures["similarity-timesteps.png"].axes if axes.images]
    assert [panel.get_title() for panel in panels][:2] == ["mid 0.0 q (chance 0.50)", "up 0.0.0 q (chance 0.25)"]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), EVOLUTIONS[0].overlap)
