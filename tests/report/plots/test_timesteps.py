"""Pictures of change over timesteps: their values are those of the sites."""

from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.report.plots import timesteps
from tests.support.reports import CALLED, LAYER, UP, site_over_timesteps, site_report

EVOLUTIONS = [site_over_timesteps(), site_over_timesteps(UP, null_dim=(1, 2, 3)), site_over_timesteps(UP, "out")]


def path(name: str) -> Path:
    return Path(f"{name}.png")


def test_a_map_for_each_feature(figures: dict[str, Any]) -> None:
    names = [made.name for made in timesteps.draw_maps(EVOLUTIONS, CALLED, path)]
    assert names == ["timesteps-q.png", "effective-rank-q.png", "timesteps-out.png", "effective-rank-out.png"]
    null_dim, bar = figures["timesteps-q.png"].axes
    rank, _ = figures["effective-rank-q.png"].axes
    np.testing.assert_allclose(null_dim.images[0].get_array(), [[37.5, 50, 62.5], [12.5, 25, 37.5]])
    assert null_dim.images[0].get_clim() == (12.5, 62.5)
    assert bar.get_ylabel() == "null dimensions, % of the dimensions"
    np.testing.assert_allclose(rank.images[0].get_array(), np.full((2, 3), 25.0))
    assert [label.get_text() for label in null_dim.get_yticklabels()] == list(CALLED.values())


def test_lines_over_the_timesteps(figures: dict[str, Any]) -> None:
    timesteps.draw_evolution(EVOLUTIONS, CALLED, path("evolution"))
    first = figures["evolution.png"].axes[0]
    assert [line.get_label() for line in first.get_lines()] == list(CALLED.values())
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
    list(timesteps.draw_similarity(EVOLUTIONS, CALLED, path))
    *panels, bar = figures["similarity-timesteps.png"].axes
    titles = [panel.get_title().split("\n") for panel in panels]
    assert titles[:2] == [["mid_block.attentions.0 q", "(chance 0.62)"], ["up_blocks.0.attentions.0 q", "(chance 0.38)"]]
    assert {panel.images[0].get_clim() for panel in panels} == {(0.6, 1)}, "one colour bar is right for all"
    assert bar.get_ylabel() == "overlap"
    np.testing.assert_array_equal(panels[0].images[0].get_array(), EVOLUTIONS[0].overlap)
