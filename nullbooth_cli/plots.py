"""Pictures, drawn with matplotlib and without a display. Okabe and Ito's colours, which the colour-blind tell apart."""

from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError, ResourceError

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def check_picture(path: str) -> None:
    """Raise ConfigError for a name that says no format that can be drawn."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot draw {path}", f"name a file that ends in one of {', '.join(FORMATS)}")


def leakage_against_null_dim(document: dict[str, Any], path: str) -> None:
    """Draw the ladder of `report.explore_document`: a thin line for each site, a thick one for the largest leakage of all."""
    figure, axes = _figure("null dimensions, % of all", "leakage, norm(P K) / norm(K)")
    rungs = document["ladder"]
    for data, colour, style, name in (
        ("leakage", BLUE, "-", "collected prompts"),
        ("heldout_leakage", ORANGE, "--", "held-out prompts"),
    ):
        if rungs[0]["sites"][0][data] is None:
            continue
        for i in range(len(rungs[0]["sites"])):
            line = [(100 * r["sites"][i]["null_dim"] / r["sites"][i]["dim"], r["sites"][i][data]) for r in rungs]
            axes.plot(*_drawable(line), color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
        line = [(100 * r["null_dim"] / r["dim"], r[f"largest_{data}"]) for r in rungs]
        axes.plot(
            *_drawable(line), color=colour, linestyle=style, linewidth=2.2, marker="o", markersize=4, label=f"{name}: largest"
        )
        axes.plot([], [], color=colour, linestyle=style, linewidth=0.6, alpha=0.6, label=f"{name}: each site")
    now = next(r for r in rungs if r["value"] == document["rule"]["value"])
    share = 100 * now["null_dim"] / now["dim"]
    axes.axvline(share, color=GREY, linewidth=1, label=f"{document['rule']['name']} {now['value']:g}, in force")
    axes.set_yscale("log")
    axes.set_ylim(top=1.3)
    axes.set_title(f"Leakage against the size of the null space, {len(now['sites'])} spectra")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _drawable(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """x and y of the points that a logarithmic axis has room for."""
    kept = [(x, y) for x, y in points if y > 0]
    return [x for x, _ in kept], [y for _, y in kept]


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: str) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error}", "check the folder and its permissions") from error
