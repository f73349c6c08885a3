"""Pictures of the overlap between layers."""

from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.report.over_timesteps import LayerOverlap
from nullbooth_cli.report.plots.layers import draw_layers
from tests.support.reports import CALLED, LAYER, UP


def test_a_panel_for_each_feature_and_width(figures: dict[str, Any]) -> None:
    overlap = np.array([[1.0, 0.3], [0.3, 1.0]])
    found = [LayerOverlap(feature=feature, dim=8, layers=(LAYER, UP), overlap=overlap, chance=0.125) for feature in ("q", "out")]
    assert [path.name for path in draw_layers(found, CALLED, lambda name: Path(f"{name}.svg"))] == ["similarity-layers.svg"]
    *panels, bar = figures["similarity-layers.svg"].axes
    assert [panel.get_title() for panel in panels] == [f"feature {of}, 8 dimensions (chance 0.12)" for of in ("q", "out")]
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == ["mid_block.attentions.0  1", "up_blocks.0.attentions.0  2"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "2"]
    assert bar.get_ylabel() == "overlap"
    np.testing.assert_array_equal(panels[0].images[0].get_array(), overlap)
