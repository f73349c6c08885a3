"""Attention maps: the places of the image that attend to each word."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Step
from nullbooth_cli.report.plots.canvas import Floats, figure, plain, save
from nullbooth_cli.store import AttentionMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("<|", "<s", "</s", "<pad")  # begin, end and padding marks of tokenizers: not words of the prompt


def word_maps(maps: AttentionMaps, layers: Iterable[str] | None = None) -> Floats:
    """`[S, H, W, K]`: the mean attention of the layers (all by default), enlarged to the size of the largest of them.

    A place of a small map becomes a block of places. The words of the text still sum to 1 at every place.
    """
    chosen = [maps.layers[layer].astype(np.float64) for layer in (maps.layers if layers is None else layers)]
    height, width = max(values.shape[1:3] for values in chosen)
    rows, columns = np.arange(height), np.arange(width)
    enlarged = [values[:, rows * values.shape[1] // height][:, :, columns * values.shape[2] // width] for values in chosen]
    return np.asarray(np.mean(enlarged, axis=0))


def draw_attention(
    text: str, maps: AttentionMaps, steps: Sequence[Step], path: Path, layers: Sequence[str] | None = None
) -> Path:
    """A row for each word: the image, the mean over all recorded timesteps, and each timestep.

    The maps of the layers (all by default) are enlarged to one size and averaged. Each row has one scale, from 0 to its largest
    value: shades compare within a row, not between words.
    """
    values = word_maps(maps, layers)
    shown = [i for i, word in enumerate(maps.words) if not word.startswith(MARKS)] or list(range(len(maps.words)))
    columns = 2 + len(maps.steps)
    made = figure(1.15 * columns + 1.0, 1.15 * len(shown) + 1.1, None)
    made.suptitle(f"{plain(text)}\nmean attention of each word, {len(layers or maps.layers)} layers", fontsize=11)
    grid = made.subplots(len(shown), columns, squeeze=False)
    mean = values.mean(axis=0)
    for row, token in enumerate(shown):
        largest = max(float(values[..., token].max()), 1e-12)
        _show(grid[row, 0], maps.image)
        _show(grid[row, 1], maps.image, mean[..., token], float(mean[..., token].max()))
        for i in range(len(maps.steps)):
            _show(grid[row, 2 + i], maps.image, values[i, ..., token], largest)
        grid[row, 0].set_ylabel(plain(maps.words[token]), rotation=0, ha="right", va="center", fontsize=11)
    titles = ["image", "mean", *(f"t {steps[step].timestep:.0f}" for step in maps.steps)]
    for column, title in enumerate(titles):
        grid[0, column].set_title(title, fontsize=9)
    return save(made, path)


def _show(drawn: "Axes", image: NDArray[np.uint8], heat: Floats | None = None, largest: float = 1.0) -> None:
    """The image in grey under a heat map `[H, W]`, or in colour without one."""
    height, width = image.shape[:2]
    drawn.set_xticks([])
    drawn.set_yticks([])
    grey = np.repeat(image.mean(axis=2, keepdims=True) / 255 * 0.55 + 0.2, 3, axis=2)
    drawn.imshow(image if heat is None else grey, extent=(0, width, height, 0))
    if heat is not None:
        share = np.clip(heat / largest, 0, 1)
        drawn.imshow(share, cmap="viridis", vmin=0, vmax=1, alpha=0.25 + 0.6 * share, extent=(0, width, height, 0))
