"""Parts of an answer: tables, shortened names and folded lines. Nothing here prints."""

import sys
import textwrap
from typing import TYPE_CHECKING, Literal

from nullbooth_cli.commands.screen import rich_console
from nullbooth_cli.formatting import visible, without_shared_ending

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def table(
    columns: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset(), drop: tuple[str, ...] = ()
) -> "RenderableType":
    """A plain table; the columns with index in `right` are aligned right. Cells are never cut: on a terminal they fold.

    If the table is wider than the terminal, columns are left out in the order of `drop`, and a last line names them.
    """
    from rich.console import Group
    from rich.text import Text

    left_out: list[str] = []
    console = rich_console(stderr=False)
    drawn = _without(left_out, columns, rows, right)
    for name in drop:
        if console.measure(drawn, options=console.options.update(max_width=100_000)).maximum <= console.width:
            break
        if name in columns:
            left_out.append(name)
            drawn = _without(left_out, columns, rows, right)
    return Group(drawn, Text(f"left out at this width: {', '.join(left_out)}")) if left_out else drawn


def _without(left_out: list[str], columns: list[str], rows: list[list[str]], right: frozenset[int]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    shown = [index for index, column in enumerate(columns) if column not in left_out]
    for index in shown:
        justify: Literal["left", "right"] = "right" if index in right else "left"
        drawn.add_column(Text(visible(columns[index])), justify=justify, no_wrap=index in right, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible(row[index])) for index in shown))  # here, so that the widths are right
    return drawn


def shortened(names: list[str]) -> tuple[list[str], str]:
    """On a terminal, dotted names without the ending that all of them share, and that ending; elsewhere as they are."""
    return without_shared_ending(names) if sys.stdout.isatty() else (names, "")


def folded(text: str, width: int | None, indent: int = 0) -> list[str]:
    """The lines of a text, folded at `width` columns (None: not folded), all but the first indented."""
    first, *others = text.split("\n")
    lines = [first, *(" " * indent + line for line in others)]
    if width is None:
        return lines
    wrap = textwrap.TextWrapper(max(width, 20), break_long_words=False, break_on_hyphens=False)
    wrap.subsequent_indent = " " * indent
    return [part for line in lines for part in wrap.wrap(line)]
