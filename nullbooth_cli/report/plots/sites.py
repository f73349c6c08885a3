"""One site at a time: its spectrum with the cut, its leakage, its moment."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nullbooth_cli.report.inspection import SiteReport
from nullbooth_cli.report.names import Called, site_name
from nullbooth_cli.report.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Floats,
    PathOf,
    axes,
    colour_bar,
    figure,
    heat_map,
    pages,
    panels,
    plain,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_spectra(entries: Sequence[SiteReport], spectra: Sequence[Floats], called: Called, path: PathOf) -> Iterator[Path]:
    """Eigenvalues from the largest down, with threshold, noise floor and the null part shaded: a panel for each entry.

    `spectra` are the eigenvalues `[D]`, ascending, of the entries. No panel goes below the noise floor:
    what is smaller lies on it.
    """
    for page, items in pages(list(zip(entries, spectra, strict=True))):
        made = panels(
            items,
            lambda drawn, item: _draw_spectrum(drawn, *item, called),
            title="Spectra of the second moments",
            size=(3.4, 2.5),
            x="eigenvalue, largest first",
            y="mean square",
        )
        seen = {label: handle for drawn in made.axes for handle, label in zip(*drawn.get_legend_handles_labels(), strict=True)}
        made.legend(seen.values(), seen, loc="outside lower center", ncols=2 if len(items) == 1 else 4, frameon=False, fontsize=9)
        yield save(made, path(f"spectra{page}"))


def _draw_spectrum(drawn: "Axes", entry: SiteReport, eigenvalues: Floats, called: Called) -> None:
    floor = max(entry.noise_floor, np.finfo(np.float64).tiny)
    shown = np.maximum(eigenvalues[::-1], floor)
    drawn.plot(np.arange(1, len(shown) + 1), shown, color=BLUE, linewidth=1.6, label="eigenvalues")
    drawn.set_yscale("log")
    rank = entry.dim - entry.null_dim
    drawn.axvspan(rank + 0.5, entry.dim + 0.5, color=GREEN, alpha=0.15, linewidth=0, label="null space")
    lowest = float(shown.min()) if entry.threshold is None else min(float(shown.min()), entry.threshold)
    if entry.threshold is not None:
        drawn.axhline(entry.threshold, color=ORANGE, linewidth=1, linestyle="--", label="threshold")
    if lowest <= floor:
        drawn.axhspan(lowest / 3, floor, color=GREY, alpha=0.45, linewidth=0, label="below the noise floor")
    drawn.set_ylim(lowest / 3, 3 * float(shown.max()))
    drawn.set_xlim(0.5, entry.dim + 0.5)
    name = plain(site_name(called, entry.layer, entry.feature, entry.timestep))
    drawn.set_title(f"{name}\n{entry.null_dim} of {entry.dim} null", fontsize=8)


def draw_leakage(entries: Sequence[SiteReport], called: Called, path: Path) -> Path:
    """Leakage on the collected and on the held-out prompts, one row for each entry, the largest on top."""
    ordered = sorted(entries, key=lambda entry: max(entry.leakage, entry.heldout_leakage or 0.0))
    made = figure(8, max(2.5, 0.24 * len(ordered) + 1.2), "Leakage: the share of the data that lies in the null space")
    drawn = axes(made, "leakage, norm(P K) / norm(K)", "")
    rows = np.arange(len(ordered))
    collected = np.array([entry.leakage for entry in ordered])
    heldout = np.array([np.nan if entry.heldout_leakage is None else entry.heldout_leakage for entry in ordered])
    drawn.hlines(rows, np.fmin(collected, heldout), np.fmax(collected, heldout), color=GREY, linewidth=1)
    drawn.plot(collected, rows, "o", color=BLUE, markersize=5, label="collected prompts")
    if np.isfinite(heldout).any():
        drawn.plot(heldout, rows, "D", color=ORANGE, markersize=5, label="held-out prompts")
    everything = np.concatenate([collected, heldout[np.isfinite(heldout)]])
    if everything.min() > 0 and everything.max() > 30 * everything.min():
        drawn.set_xscale("log")
    else:
        drawn.set_xlim(left=0)
    labels = [plain(site_name(called, entry.layer, entry.feature, entry.timestep)) for entry in ordered]
    drawn.set_yticks(rows, labels=labels, fontsize=8)
    drawn.legend(frameon=False, fontsize=9, loc="lower right")
    return save(made, path)


def draw_moment(name: str, moment: Floats, *, mean: Floats, count: int, path: Path) -> Path:
    """A second moment `[D, D]` as a heat map, beside it its diagonal and its mean `[D]`, with statistics in the title."""
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
    label = "mean of x_i x_j (colours end at the 99.5th percentile)"
    heat_map(left, moment, colours="PuOr", lowest=-bound, highest=bound)
    colour_bar([left], label)
    top = axes(made, "", "mean of x_i^2", grid[0, 1])
    top.plot(order, diagonal, color=BLUE, linewidth=1)
    top.set_yscale("log" if (diagonal > 0).all() else "linear")
    below = axes(made, "dimension", "mean of x_i", grid[1, 1])
    below.plot(order, mean, color=ORANGE, linewidth=1)
    return save(made, path)
