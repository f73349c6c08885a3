"""How the null spaces of layers overlap."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.report.names import Called
from nullbooth_cli.report.over_timesteps import LayerOverlap
from nullbooth_cli.report.plots.canvas import PathOf, colour_bar, heat_map, pages, panels, plain, save, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES = 24  # beside one heat map


def draw_layers(overlaps: Sequence[LayerOverlap], called: Called, path: PathOf) -> Iterator[Path]:
    """Overlap of the null spaces of every two layers of one width: a panel for each feature and width."""
    title = "Mean squared cosine of the principal angles between the null spaces of two layers"

    def panel(drawn: "Axes", found: LayerOverlap) -> None:
        heat_map(drawn, found.overlap, lowest=0, highest=1)
        names = [f"{plain(called[layer])}  {i + 1}" for i, layer in enumerate(found.layers)]
        ticks(drawn.yaxis, names, MOST_NAMES)
        ticks(drawn.xaxis, [str(i + 1) for i in range(len(names))], MOST_NAMES)
        drawn.tick_params(labelsize=7)
        drawn.set_title(f"feature {found.feature}, {found.dim} dimensions (chance {found.chance:.2f})", fontsize=9)

    for page, items in pages(overlaps):
        made = panels(items, panel, title=title, size=(5.6, 3.8), columns=2)
        colour_bar(made.axes, "overlap")
        yield save(made, path(f"similarity-layers{page}"))
