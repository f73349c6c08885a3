"""What changes over the timesteps and the layers: maps, lines, distributions, similarities of null spaces."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.report.plots.canvas import COLOURS, ORANGE, axes, figure, heat_map, pages, panels, save, short, ticks

Floats = NDArray[np.float64]


def _by_feature(courses: Iterable[SiteOverTimesteps]) -> dict[str, list[SiteOverTimesteps]]:
    found: dict[str, list[SiteOverTimesteps]] = {}
    for course in courses:
        found.setdefault(course.site.feature, []).append(course)
    return found


def draw_maps(courses: Sequence[SiteOverTimesteps], folder: Path, ending: str) -> Iterator[Path]:
    """null_dim and effective rank, as shares of D, layer by timestep: one picture for each feature."""
    for feature, of_feature in _by_feature(courses).items():
        made = figure(11, max(3.0, 0.3 * len(of_feature) + 1.8), f"Feature {feature}, each timestep alone")
        layers = short([course.site.layer for course in of_feature])
        for i, (title, values) in enumerate(
            (
                ("null_dim", [100 * c.null_dim / c.site.dim for c in of_feature]),
                ("effective rank", [100 * c.effective_rank / c.site.dim for c in of_feature]),
            )
        ):
            drawn = axes(made, "timestep", "layer" if i == 0 else "", (1, 2, i + 1))
            heat_map(drawn, np.array(values), f"{title}, % of the dimensions")
            drawn.set_title(title, fontsize=10)
            ticks(drawn.xaxis, [f"{t:.0f}" for t in of_feature[0].timesteps], 8)
            drawn.set_yticks(range(len(layers)), labels=layers if i == 0 else [""] * len(layers), fontsize=8)
        yield save(made, folder / f"timesteps-{feature}.{ending}")


def draw_evolution(courses: Sequence[SiteOverTimesteps], folder: Path, ending: str) -> Path:
    """null_dim, effective rank and leakage over the timesteps: a column for each feature, a line for each layer."""
    found = _by_feature(courses)
    made = figure(max(4.2 * len(found), 6.0), 8.5, "How the spectra evolve while an image is denoised")
    grid = made.add_gridspec(3, len(found))
    for column, (feature, of_feature) in enumerate(found.items()):
        names = short([course.site.layer for course in of_feature])
        for row, label in enumerate(("null dimensions, %", "effective rank, % of D", "leakage")):
            drawn = axes(made, "timestep" if row == 2 else "", label if column == 0 else "", grid[row, column])
            for i, (course, name) in enumerate(zip(of_feature, names, strict=True)):
                share = 100 / course.site.dim
                values = (course.null_dim * share, course.effective_rank * share, course.leakage)[row]
                colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
                drawn.plot(course.timesteps, values, label=name, color=colour, linestyle=style, linewidth=1.3)
            drawn.invert_xaxis()
            if row == 0:
                drawn.set_title(f"feature {feature}", fontsize=10)
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=8)
    return save(made, folder / f"evolution.{ending}")


def draw_distribution(courses: Sequence[SiteOverTimesteps], entries: Sequence[dict[str, Any]], path: Path) -> Path:
    """How null_dim and effective rank are spread: a box over layers and timesteps for each feature; diamonds are the entries."""
    found = _by_feature(courses)
    features = list(dict.fromkeys([*found, *(entry["feature"] for entry in entries)]))
    made = figure(9, 4.2, "Null dimensions and effective rank, over layers and timesteps")
    for i, (label, key) in enumerate((("null dimensions, %", "null_dim"), ("effective rank, % of D", "effective_rank"))):
        drawn = axes(made, "feature", label, (1, 2, i + 1))
        for place, feature in enumerate(features):
            of_feature = found.get(feature, [])
            if of_feature:
                values = np.concatenate([100 * getattr(c, key) / c.site.dim for c in of_feature])
                drawn.boxplot(values, positions=[place], widths=0.5, medianprops={"color": COLOURS[0]})
            own = [
                100 * entry[key] / entry["dim"] for entry in entries if entry["feature"] == feature and entry["timestep"] is None
            ]
            drawn.plot(
                [place] * len(own), own, "D", color=ORANGE, markersize=5, label="pooled over timesteps" if place == 0 else None
            )
        drawn.set_xticks(range(len(features)), labels=features)
        drawn.set_xlim(-0.6, len(features) - 0.4)
    if made.axes[0].get_legend_handles_labels()[0]:
        made.axes[0].legend(frameon=False, fontsize=9)
    return save(made, path)


def draw_similarity(courses: Sequence[SiteOverTimesteps], folder: Path, ending: str) -> Iterator[Path]:
    """Overlap of the null spaces of every two timesteps: a panel for each site."""

    def panel(drawn: Any, course: SiteOverTimesteps) -> None:
        heat_map(drawn, course.overlap, "overlap", vmin=lowest, vmax=1)
        labels = [f"{t:.0f}" for t in course.timesteps]
        ticks(drawn.xaxis, labels, 6)
        ticks(drawn.yaxis, labels, 6)
        (name,) = short([course.site.layer])
        by_chance = course.null_dim.mean() / course.site.dim
        drawn.set_title(f"{name} {course.site.feature} (chance {by_chance:.2f})", fontsize=9)

    lowest = np.floor(10 * min((float(np.nanmin(course.overlap)) for course in courses), default=0.0)) / 10
    for page, items in pages(courses):
        title = "Mean squared cosine of the principal angles between the null spaces of two timesteps"
        made = panels(items, title, panel, (3.6, 3.0), "timestep", "timestep")
        yield save(made, folder / f"similarity-timesteps{page}.{ending}")


def draw_layers(similarities: Sequence[tuple[str, int, list[str], Floats]], folder: Path, ending: str) -> Iterator[Path]:
    """Overlap of the null spaces of every two layers of one width: a panel for each feature and width."""

    def panel(drawn: Any, item: tuple[str, int, list[str], Floats]) -> None:
        feature, dim, layers, overlap = item
        heat_map(drawn, overlap, "overlap", vmin=0, vmax=1)
        names = short(layers)
        drawn.set_xticks(range(len(names)), labels=names, rotation=60, ha="right", fontsize=8)
        drawn.set_yticks(range(len(names)), labels=names, fontsize=8)
        drawn.set_title(f"feature {feature}, {dim} dimensions", fontsize=9)

    for page, items in pages(similarities):
        title = "Mean squared cosine of the principal angles between the null spaces of two layers"
        made = panels(items, title, panel, (4.2, 3.6), "", "")
        yield save(made, folder / f"similarity-layers{page}.{ending}")
