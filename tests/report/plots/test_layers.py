"""Pictures of the overlap between layers."""

from pathlib import Path
from typing import Any

import numpy as np

from nullbooth_cli.report.over_timesteps import LayerOverlap
from nullbooth_cli.report.plots.layers import draw_layers


def test_a_panel_for_each_feature_and_width(figures: dict[str, Any]) -> None:
    layers = ("mid_block.attentions.0.attn2", "up_blocks.1.attentions.2.attn2")
    overlap = np.array([[1.0, 0.3], [0.3, 1.0]])
    found = [LayerOverlap(feature=feature, dim=8, layers=layers, overlap=overlap) for feature in ("q", "out")]
    assert [path.name for path in draw_layers(found, lambda name: Path(f"{name}.svg"))] == ["similarity-layers.svg"]
    panels = [axes for axes in figures["similarity-layers.svg"].axes if axes.images]
    assert [panel.get_title() for panel in panels] == ["feature q, 8 dimensions", "feature out, 8 dimensions"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["mid 0", "up 1.2"]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), overlap)
