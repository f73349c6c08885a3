"""How the null spaces of layers overlap."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.report.over_timesteps import LayerOverlap
from nullbooth_cli.report.plots.canvas import PathOf, heat_map, pages, panels, save, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layers(overlaps: Sequence[LayerOverlap], path: PathOf) -> Iterator[Path]:
    """Overlap of the null spaces of every two layers of one width: a panel for each feature and width."""
    title = "Mean squared cosine of the principal angles between the null spaces of two layers"
    for page, items in pages(overlaps):
        yield save(panels(items, _draw_overlap, title=title, size=(4.2, 3.6)), path(f"similarity-layers{page}"))


def _draw_overlap(drawn: "Axes", found: LayerOverlap) -> None:
    heat_map(drawn, found.overlap, "overlap", lowest=0, highest=1)
    names = short(found.layers)
    drawn.set_xticks(range(len(names)), labels=names, rotation=60, ha="right", fontsize=8)
    drawn.set_yticks(range(len(names)), labels=names, fontsize=8)
    drawn.set_title(f"feature {found.feature}, {found.dim} dimensions", fontsize=9)
