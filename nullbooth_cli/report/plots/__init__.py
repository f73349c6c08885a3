"""Pictures, drawn with matplotlib and without a display: `canvas` has the one style, the other modules what is drawn."""

from nullbooth_cli.report.plots.attention import draw_attention
from nullbooth_cli.report.plots.canvas import check_picture
from nullbooth_cli.report.plots.ladder import draw_ladder
from nullbooth_cli.report.plots.sites import draw_leakage, draw_moment, draw_spectra
from nullbooth_cli.report.plots.timesteps import draw_distribution, draw_evolution, draw_layers, draw_maps, draw_similarity

__all__ = [
    "check_picture",
    "draw_attention",
    "draw_distribution",
    "draw_evolution",
    "draw_ladder",
    "draw_layers",
    "draw_leakage",
    "draw_maps",
    "draw_moment",
    "draw_similarity",
    "draw_spectra",
]
