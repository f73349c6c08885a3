"""Leakage against the size of the null space, as a threshold moves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.report.ladder import Ladder
from nullbooth_cli.report.plots.canvas import BLUE, GREY, ORANGE, axes, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float | None]]  # share of the null dimensions in percent, leakage


def draw_ladder(ladder: Ladder, path: Path) -> Path:
    """A thin line for each site, a thick one for the largest leakage of all; dashed for the held-out prompts."""
    made = figure(8, 5)
    drawn = axes(made, "null dimensions, % of all", "leakage, norm(P K) / norm(K)")
    by_site = [[rung.sites[i] for rung in ladder.ladder] for i in range(len(ladder.ladder[0].sites))]
    collected = [[(100 * s.null_dim / s.dim, s.leakage) for s in of_site] for of_site in by_site]
    largest = [(100 * rung.null_dim / rung.dim, rung.largest_leakage) for rung in ladder.ladder]
    _draw_lines(drawn, collected, largest, name="collected prompts", colour=BLUE, style="-")
    if ladder.heldout:
        heldout = [[(100 * s.null_dim / s.dim, s.heldout_leakage) for s in of_site] for of_site in by_site]
        highest = [(100 * rung.null_dim / rung.dim, rung.largest_heldout_leakage) for rung in ladder.ladder]
        _draw_lines(drawn, heldout, highest, name="held-out prompts", colour=ORANGE, style="--")
    now = ladder.in_force
    label = f"{ladder.rule.name} {now.value:g}, in force"
    drawn.axvline(100 * now.null_dim / now.dim, color=GREY, linewidth=1, label=label)
    drawn.set_yscale("log")
    drawn.set_ylim(top=1.3)
    drawn.set_title(f"Leakage against the size of the null space, {len(now.sites)} spectra")
    drawn.legend(frameon=False, fontsize=9)
    return save(made, path)


def _draw_lines(drawn: "Axes", sites: Sequence[Points], largest: Points, *, name: str, colour: str, style: str) -> None:
    for line in sites:
        drawn.plot(*_drawable(line), color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
    label = f"{name}: largest"
    drawn.plot(*_drawable(largest), color=colour, linestyle=style, linewidth=2.2, marker="o", markersize=4, label=label)
    drawn.plot([], [], color=colour, linestyle=style, linewidth=0.6, alpha=0.6, label=f"{name}: each site")


def _drawable(points: Points) -> tuple[list[float], list[float]]:
    """x and y of the points that a logarithmic axis can show."""
    shown = [(x, y) for x, y in points if y is not None and y > 0]
    return [x for x, _ in shown], [y for _, y in shown]
