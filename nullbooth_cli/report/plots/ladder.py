"""Leakage against the size of the null space, as a threshold moves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.report.ladder import Ladder, Rung
from nullbooth_cli.report.plots.canvas import BLUE, GREY, ORANGE, axes, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float | None]]  # share of the null dimensions in percent, leakage
ROOM = (52, 14)  # of a label, in pixels


def draw_ladder(ladder: Ladder, path: Path) -> Path:
    """A thin line for each site, a thick one for the largest leakage of all; dashed for the held-out prompts.

    The points of the upper line are labelled with their thresholds where there is room, the one in force always.
    """
    made = figure(9, 5.5)
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
    drawn.set_ylim(top=3)
    drawn.set_xlim(-9, 104)
    drawn.set_title(f"Leakage against the size of the null space, {len(now.sites)} spectra; points are {ladder.rule.name}")
    drawn.legend(frameon=False, fontsize=9, loc="lower right")
    _label_points(drawn, ladder)
    return save(made, path)


def _draw_lines(drawn: "Axes", sites: Sequence[Points], largest: Points, *, name: str, colour: str, style: str) -> None:
    for line in sites:
        drawn.plot(*_drawable(line), color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
    label = f"{name}: largest"
    drawn.plot(*_drawable(largest), color=colour, linestyle=style, linewidth=2.2, marker="o", markersize=4, label=label)
    drawn.plot([], [], color=colour, linestyle=style, linewidth=0.6, alpha=0.6, label=f"{name}: each site")


def _label_points(drawn: "Axes", ladder: Ladder) -> None:
    """Thresholds beside their points, each where no label stands yet; the one in force is set in bold."""
    placed: list[tuple[float, float]] = []

    def order(rung: Rung) -> bool:
        return rung is not ladder.in_force

    for rung in sorted(ladder.ladder, key=order):
        leakage = rung.largest_heldout_leakage if ladder.heldout else rung.largest_leakage
        if not leakage:  # it has no place on a logarithmic axis
            continue
        point = (100 * rung.null_dim / rung.dim, leakage)
        x, y = drawn.transData.transform(point)
        if all(abs(x - a) > ROOM[0] or abs(y - b) > ROOM[1] for a, b in placed):
            placed.append((x, y))
            weight = "bold" if rung is ladder.in_force else "normal"
            text = f"{rung.value:g}"
            drawn.annotate(
                text, point, xytext=(-5, 5), textcoords="offset points", ha="right", va="bottom", fontsize=8, weight=weight
            )


def _drawable(points: Points) -> tuple[list[float], list[float]]:
    """x and y of the points that a logarithmic axis can show."""
    shown = [(x, y) for x, y in points if y is not None and y > 0]
    return [x for x, _ in shown], [y for _, y in shown]
