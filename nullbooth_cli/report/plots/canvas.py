"""One style for all pictures. Okabe and Ito's colours, and viridis: the colour-blind tell them apart."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError, ResourceError

FORMATS = (".png", ".svg", ".pdf")
DPI = 120
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PER_PAGE = 12
COLUMNS = 3


def check_picture(path: str) -> None:
    """Raise ConfigError for a name that says no format that can be drawn."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot draw {path}", f"name a file that ends in one of {', '.join(FORMATS)}")


def figure(width: float, height: float, title: str | None = None) -> Any:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    if title:
        made.suptitle(title, fontsize=12)
    return made


def axes(made: Any, x: str, y: str, place: Any = (1, 1, 1)) -> Any:
    """One pair of axes; `place` is (rows, columns, number) or a part of a grid."""
    where = place if isinstance(place, tuple) else (place,)
    drawn = made.add_subplot(*where, xlabel=x, ylabel=y)
    drawn.grid(alpha=0.25)
    drawn.spines[["top", "right"]].set_visible(False)
    return drawn


def pages(items: Sequence[Any], per_page: int = PER_PAGE) -> Iterator[tuple[str, Sequence[Any]]]:
    """(ending of the file name, items) of each page; no ending where one page holds all."""
    for start in range(0, len(items), per_page):
        yield ("" if len(items) <= per_page else f"-{start // per_page + 1}"), items[start : start + per_page]


def panels(items: Sequence[Any], title: str, draw: Callable[[Any, Any], None], size: tuple[float, float], x: str, y: str) -> Any:
    """A figure with one panel for each item, `size` inches each; only the outer panels name the axes."""
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    made = figure(max(size[0] * columns, 6.0), size[1] * rows + 0.6, title)
    grid = made.add_gridspec(rows, columns)
    for i, item in enumerate(items):
        below = i + columns >= len(items)
        draw(axes(made, x if below else "", y if i % columns == 0 else "", grid[i // columns, i % columns]), item)
    return made


def heat_map(drawn: Any, values: Any, label: str, **limits: Any) -> Any:
    """A matrix with its colour bar; NaN is grey."""
    from matplotlib import colormaps

    drawn.grid(False)
    colours = limits.pop("cmap", "viridis")
    image = drawn.imshow(
        values, aspect="auto", interpolation="nearest", cmap=colormaps[colours].with_extremes(bad=GREY), **limits
    )
    drawn.figure.colorbar(image, ax=drawn, label=label, shrink=0.9)
    return image


def ticks(axis: Any, labels: Sequence[str], at_most: int = 12, **text: Any) -> None:
    """Label every n-th position, so that labels never run into each other."""
    every = -(-len(labels) // at_most)
    axis.set_ticks(range(0, len(labels), every), labels=labels[::every], **text)


def short(layers: Sequence[str]) -> list[str]:
    """Layer names without the words that none of them needs: `down 0.1`, `mid`, `up 3.2`."""
    names = []
    for layer in layers:
        parts = layer.removesuffix(".attn2").split(".")
        block = parts[0].removesuffix("_blocks").removesuffix("_block")
        numbers = [part for part in parts if part.isdigit()]
        names.append(f"{block} {'.'.join(numbers)}" if numbers else block)
    return names if len(set(names)) == len(set(layers)) else list(layers)


def save(made: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, dpi=DPI)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error}", "check the folder and its permissions") from error
    return path
