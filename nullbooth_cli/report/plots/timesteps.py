"""How null spaces change over the timesteps: maps, lines, distributions, overlaps."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from nullbooth_cli.report.inspection import SiteReport
from nullbooth_cli.report.names import Called, site_name
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.report.plots.canvas import (
    COLOURS,
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
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Quantity = Literal["null_dim", "effective_rank"]


def _by_feature(evolutions: Iterable[SiteOverTimesteps]) -> dict[str, list[SiteOverTimesteps]]:
    found: dict[str, list[SiteOverTimesteps]] = {}
    for evolution in evolutions:
        found.setdefault(evolution.site.feature, []).append(evolution)
    return found


def _percent(found: SiteOverTimesteps, quantity: Quantity) -> Floats:
    """null_dim or effective rank at each timestep, in percent of the dimensions, `[T]`."""
    values: Floats = 100 * getattr(found, quantity) / found.site.dim
    return values


def draw_maps(evolutions: Sequence[SiteOverTimesteps], called: Called, path: PathOf) -> Iterator[Path]:
    """null_dim and effective rank, as shares of D, layer by timestep: a picture of each for each feature.

    Grey are the timesteps at which the denoiser of a layer does not run.
    """
    pictures: tuple[tuple[str, str, Quantity], ...] = (
        ("timesteps", "null dimensions", "null_dim"),
        ("effective-rank", "effective rank", "effective_rank"),
    )
    for feature, of_feature in _by_feature(evolutions).items():
        layers = [plain(called[evolution.site.layer]) for evolution in of_feature]
        timesteps = dict(sorted(step for each in of_feature for step in enumerate(each.timesteps, each.site.first_step)))
        for name, title, quantity in pictures:
            made = figure(8, max(3.0, 0.3 * len(of_feature) + 1.4), f"Feature {feature}: {title}, each timestep alone")
            values = np.full((len(layers), len(timesteps)), np.nan)
            for row, each in zip(values, of_feature, strict=True):
                start = each.site.first_step - min(timesteps)
                row[start : start + len(each.timesteps)] = _percent(each, quantity)
            drawn = axes(made, "timestep", "")
            heat_map(drawn, values, lowest=float(np.nanmin(values)), highest=float(np.nanmax(values)))
            ticks(drawn.xaxis, [f"{t:.0f}" for t in timesteps.values()], 8)
            drawn.set_yticks(range(len(layers)), labels=layers, fontsize=8)
            colour_bar([drawn], f"{title}, % of the dimensions")
            yield save(made, path(f"{name}-{feature}"))


def draw_evolution(evolutions: Sequence[SiteOverTimesteps], called: Called, path: Path) -> Path:
    """null_dim, effective rank and leakage over the timesteps: a column for each feature, a line for each layer."""
    found = _by_feature(evolutions)
    made = figure(max(4.2 * len(found), 6.0), 8.5, "How the spectra evolve while an image is denoised")
    grid = made.add_gridspec(3, len(found))
    for column, (feature, of_feature) in enumerate(found.items()):
        names = [plain(called[evolution.site.layer]) for evolution in of_feature]
        for row, label in enumerate(("null dimensions, %", "effective rank, % of D", "leakage")):
            drawn = axes(made, "timestep" if row == 2 else "", label if column == 0 else "", grid[row, column])
            for i, (each, name) in enumerate(zip(of_feature, names, strict=True)):
                values = (_percent(each, "null_dim"), _percent(each, "effective_rank"), each.leakage)[row]
                colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
                drawn.plot(each.timesteps, values, label=name, color=colour, linestyle=style, linewidth=1.3)
            drawn.invert_xaxis()
            if row == 0:
                drawn.set_title(f"feature {feature}", fontsize=10)
    handles, labels = made.axes[0].get_legend_handles_labels()
    columns = max(1, int(made.get_figwidth() / (0.07 * max(map(len, labels)) + 0.5)))
    made.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return save(made, path)


def draw_distribution(evolutions: Sequence[SiteOverTimesteps], entries: Sequence[SiteReport], path: Path) -> Path:
    """null_dim and effective rank for each feature: a box over layers and timesteps, diamonds for pooled projectors."""
    found = _by_feature(evolutions)
    features = list(dict.fromkeys([*found, *(entry.feature for entry in entries)]))
    pooled = [entry for entry in entries if entry.timestep is None]
    quantities: tuple[tuple[str, Quantity], ...] = (
        ("null dimensions, %", "null_dim"),
        ("effective rank, % of D", "effective_rank"),
    )
    made = figure(9, 4.2, "Null dimensions and effective rank, over layers and timesteps")
    for i, (label, quantity) in enumerate(quantities):
        drawn = axes(made, "feature", label, (1, 2, i + 1))
        for place, feature in enumerate(features):
            if of_feature := found.get(feature, []):
                values = np.concatenate([_percent(each, quantity) for each in of_feature])
                drawn.boxplot(values, positions=[place], widths=0.5, medianprops={"color": COLOURS[0]})
            own = [100 * float(getattr(entry, quantity)) / entry.dim for entry in pooled if entry.feature == feature]
            label_once = "pooled over timesteps" if place == 0 else None
            drawn.plot([place] * len(own), own, "D", color=ORANGE, markersize=5, label=label_once)
        drawn.set_xticks(range(len(features)), labels=features)
        drawn.set_xlim(-0.6, len(features) - 0.4)
    if made.axes[0].get_legend_handles_labels()[0]:
        made.axes[0].legend(frameon=False, fontsize=9)
    return save(made, path)


def draw_similarity(evolutions: Sequence[SiteOverTimesteps], called: Called, path: PathOf) -> Iterator[Path]:
    """Overlap of the null spaces of every two timesteps: a panel for each site."""
    lowest = np.floor(10 * min((float(np.nanmin(each.overlap)) for each in evolutions), default=0.0)) / 10
    title = "Mean squared cosine of the principal angles between the null spaces of two timesteps"

    def panel(drawn: "Axes", found: SiteOverTimesteps) -> None:
        heat_map(drawn, found.overlap, lowest=lowest, highest=1)
        labels = [f"{t:.0f}" for t in found.timesteps]
        ticks(drawn.xaxis, labels, 6)
        ticks(drawn.yaxis, labels, 6)
        name = plain(site_name(called, found.site.layer, found.site.feature))
        drawn.set_title(f"{name}\n(chance {found.chance:.2f})", fontsize=8)

    for page, items in pages(evolutions):
        made = panels(items, panel, title=title, size=(3.6, 3.0), x="timestep", y="timestep")
        colour_bar(made.axes, "overlap")
        yield save(made, path(f"similarity-timesteps{page}"))
