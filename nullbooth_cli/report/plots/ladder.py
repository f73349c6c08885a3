"""Leakage against the size of the null space, as a threshold moves: `project --explore --plot`."""

from pathlib import Path
from typing import Any

from nullbooth_cli.report.plots.canvas import BLUE, GREY, ORANGE, axes, figure, save


def draw_ladder(document: dict[str, Any], path: str) -> None:
    """Draw the ladder of `report.explore_document`: a thin line for each site, a thick one for the largest leakage of all."""
    made = figure(8, 5)
    drawn = axes(made, "null dimensions, % of all", "leakage, norm(P K) / norm(K)")
    rungs = document["ladder"]
    for data, colour, style, name in (
        ("leakage", BLUE, "-", "collected prompts"),
        ("heldout_leakage", ORANGE, "--", "held-out prompts"),
    ):
        if rungs[0]["sites"][0][data] is None:
            continue
        for i in range(len(rungs[0]["sites"])):
            line = [(100 * r["sites"][i]["null_dim"] / r["sites"][i]["dim"], r["sites"][i][data]) for r in rungs]
            drawn.plot(*_drawable(line), color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
        line = [(100 * r["null_dim"] / r["dim"], r[f"largest_{data}"]) for r in rungs]
        drawn.plot(
            *_drawable(line), color=colour, linestyle=style, linewidth=2.2, marker="o", markersize=4, label=f"{name}: largest"
        )
        drawn.plot([], [], color=colour, linestyle=style, linewidth=0.6, alpha=0.6, label=f"{name}: each site")
    now = next(r for r in rungs if r["value"] == document["rule"]["value"])
    share = 100 * now["null_dim"] / now["dim"]
    drawn.axvline(share, color=GREY, linewidth=1, label=f"{document['rule']['name']} {now['value']:g}, in force")
    drawn.set_yscale("log")
    drawn.set_ylim(top=1.3)
    drawn.set_title(f"Leakage against the size of the null space, {len(now['sites'])} spectra")
    drawn.legend(frameon=False, fontsize=9)
    save(made, Path(path))


def _drawable(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """x and y of the points that a logarithmic axis has room for."""
    kept = [(x, y) for x, y in points if y > 0]
    return [x for x, _ in kept], [y for _, y in kept]
