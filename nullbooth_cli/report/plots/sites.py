"""What one site at a time shows: its spectrum and where it is cut, its moment, its leakage."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.report.plots.canvas import BLUE, GREEN, GREY, ORANGE, axes, figure, heat_map, pages, panels, save, short

Floats = NDArray[np.float64]


def draw_spectra(entries: Sequence[dict[str, Any]], spectra: Sequence[Floats], folder: Path, ending: str) -> Iterator[Path]:
    """Eigenvalues from the largest down, with threshold, noise floor and the null part shaded: a panel for each entry.

    `entries` are those of `report.inspect_document`, `spectra` their eigenvalues `[D]`, ascending.
    """

    def panel(drawn: Any, item: tuple[dict[str, Any], Floats]) -> None:
        entry, eigenvalues = item
        descending = eigenvalues[::-1]
        floor = max(entry["noise_floor"], np.finfo(np.float64).tiny)
        shown = np.maximum(descending, floor / 10)
        order = np.arange(1, len(shown) + 1)
        drawn.plot(order, shown, color=BLUE, linewidth=1.6, label="eigenvalues")
        drawn.set_yscale("log")
        known = entry["dim"] - entry["null_dim"]
        drawn.axvspan(known + 0.5, entry["dim"] + 0.5, color=GREEN, alpha=0.15, linewidth=0, label="null space")
        if entry["threshold"] is not None:
            drawn.axhline(entry["threshold"], color=ORANGE, linewidth=1, linestyle="--", label="threshold")
        drawn.axhspan(floor / 30, floor, color=GREY, alpha=0.45, linewidth=0, label="below the noise floor")
        drawn.set_ylim(bottom=floor / 30)
        drawn.set_xlim(0.5, entry["dim"] + 0.5)
        at = "" if entry["timestep"] is None else f", t {entry['timestep']:g}"
        (name,) = short([entry["layer"]])
        drawn.set_title(f"{name} {entry['feature']}{at}: {entry['null_dim']} of {entry['dim']} null", fontsize=9)

    for page, items in pages(list(zip(entries, spectra, strict=True))):
        made = panels(items, "Spectra of the second moments", panel, (3.4, 2.5), "eigenvalue, largest first", "mean square")
        made.legend(*made.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        yield save(made, folder / f"spectra{page}.{ending}")


def draw_leakage(entries: Sequence[dict[str, Any]], path: Path) -> Path:
    """Leakage on the collected and on the held-out prompts, one row for each entry, the leakiest on top."""
    ordered = sorted(entries, key=lambda entry: max(entry["leakage"], entry["heldout_leakage"] or 0.0))
    made = figure(8, max(2.5, 0.24 * len(ordered) + 1.2), "Leakage: what of the data lies in the null space")
    drawn = axes(made, "leakage, norm(P K) / norm(K)", "")
    rows = np.arange(len(ordered))
    known = np.array([entry["leakage"] for entry in ordered])
    held = np.array([np.nan if entry["heldout_leakage"] is None else entry["heldout_leakage"] for entry in ordered])
    drawn.hlines(rows, np.fmin(known, held), np.fmax(known, held), color=GREY, linewidth=1)
    drawn.plot(known, rows, "o", color=BLUE, markersize=5, label="collected prompts")
    if np.isfinite(held).any():
        drawn.plot(held, rows, "D", color=ORANGE, markersize=5, label="held-out prompts")
    everything = np.concatenate([known, held[np.isfinite(held)]])
    if everything.min() > 0 and everything.max() > 30 * everything.min():
        drawn.set_xscale("log")
    else:
        drawn.set_xlim(left=0)
    names = short([entry["layer"] for entry in ordered])
    drawn.set_yticks(
        rows,
        labels=[
            f"{name} {entry['feature']}" + ("" if entry["timestep"] is None else f" t {entry['timestep']:g}")
            for name, entry in zip(names, ordered, strict=True)
        ],
        fontsize=8,
    )
    drawn.legend(frameon=False, fontsize=9, loc="lower right")
    return save(made, path)


def draw_moment(name: str, moment: Floats, mean: Floats, count: int, path: Path) -> Path:
    """A second moment `[D, D]` as a heat map, its diagonal and its mean beside it, with the numbers that tell it at once."""
    diagonal, order, norm = np.diag(moment), np.arange(len(moment)), float(np.linalg.norm(moment)) or 1.0
    trace, off = float(diagonal.sum()) or 1.0, float(np.linalg.norm(moment - np.diag(diagonal)))
    statistics = (
        f"trace {trace:.4g}, largest mean square {diagonal.max():.3g}, the mean's share of the trace "
        f"{100 * float(mean @ mean) / trace:.1f} %, off the diagonal {100 * off / norm:.1f} % of the norm"
    )
    made = figure(10.5, 5.6, f"Second moment of {name}, {count:,} vectors\n{statistics}")
    grid = made.add_gridspec(2, 2, width_ratios=(1.35, 1))
    bound = float(np.quantile(np.abs(moment), 0.995)) or 1.0
    left = axes(made, "dimension", "dimension", grid[:, 0])
    heat_map(left, moment, "mean of x_i x_j (colours end at the 99.5th percentile)", cmap="PuOr", vmin=-bound, vmax=bound)
    top = axes(made, "", "mean of x_i^2", grid[0, 1])
    top.plot(order, diagonal, color=BLUE, linewidth=1)
    top.set_yscale("log" if (diagonal > 0).all() else "linear")
    below = axes(made, "dimension", "mean of x_i", grid[1, 1])
    below.plot(order, mean, color=ORANGE, linewidth=1)
    return save(made, path)
