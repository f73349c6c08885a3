"""One style for all pictures. Okabe and Ito's colours, and viridis: colour-blind readers can distinguish them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import visible
from nullbooth_cli.report.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
DPI = 120
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PER_PAGE = 12
COLUMNS = 3

Floats = NDArray[np.float64]
PathOf = Callable[[str], Path]  # the file of a picture, by its name without an ending
Item = TypeVar("Item")


def check_picture(path: str) -> None:
    """Raise ConfigError for a name whose ending is not a format that can be drawn."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot draw {path}", f"name a file that ends in one of {', '.join(FORMATS)}")


def figure(width: float, height: float, title: str | None = None) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    if title:
        made.suptitle(plain(title), fontsize=12)
    return made


def axes(made: "Figure", x: str, y: str, place: Any = (1, 1, 1)) -> "Axes":
    """One pair of axes; `place` is (rows, columns, number) or a part of a grid."""
    where = place if isinstance(place, tuple) else (place,)
    drawn: Axes = made.add_subplot(*where, xlabel=x, ylabel=y)
    drawn.grid(alpha=0.25)
    drawn.spines[["top", "right"]].set_visible(False)
    return drawn


def pages(items: Sequence[Item], per_page: int = PER_PAGE) -> Iterator[tuple[str, Sequence[Item]]]:
    """(ending of the file name, items) of each page; no ending where one page has room for all."""
    for start in range(0, len(items), per_page):
        yield ("" if len(items) <= per_page else f"-{start // per_page + 1}"), items[start : start + per_page]


def panels(
    items: Sequence[Item],
    draw: Callable[["Axes", Item], None],
    *,
    title: str,
    size: tuple[float, float],
    columns: int = COLUMNS,
    x: str = "",
    y: str = "",
) -> "Figure":
    """A figure with one panel for each item, `size` inches each; only the outer panels name the axes `x` and `y`."""
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    made = figure(max(size[0] * columns, 6.0), size[1] * rows + 0.6, title)
    grid = made.add_gridspec(rows, columns)
    for i, item in enumerate(items):
        below = i + columns >= len(items)
        draw(axes(made, x if below else "", y if i % columns == 0 else "", grid[i // columns, i % columns]), item)
    return made


def heat_map(drawn: "Axes", values: Floats, *, lowest: float, highest: float, colours: str = "viridis") -> None:
    """A matrix; NaN is grey. Its colours, from `lowest` to `highest`, are those of `colour_bar`."""
    from matplotlib import colormaps

    drawn.grid(False)
    drawn.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps[colours].with_extremes(bad=GREY),
        vmin=lowest,
        vmax=highest,
    )


def colour_bar(maps: Sequence["Axes"], label: str) -> None:
    """The one colour bar of heat maps of the same scale."""
    first, *_ = maps
    first.figure.colorbar(first.images[0], ax=list(maps), label=label, shrink=0.9 if len(maps) < 2 * COLUMNS else 0.5)


def ticks(axis: "Axis", labels: Sequence[str], at_most: int = 12) -> None:
    """Label every n-th position, so that labels never overlap."""
    every = -(-len(labels) // at_most)
    axis.set_ticks(range(0, len(labels), every), labels=labels[::every])


def plain(text: str) -> str:
    """A text from a user or a store for a picture: `$` starts no formula, and every character can stand in an SVG file."""
    return visible(text).replace("$", r"\$")


def save(made: "Figure", path: Path) -> Path:
    """Write a figure in the format of the file's ending. Raises ResourceError if it cannot be written."""
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, dpi=DPI)
    return path
