"""`nullbooth project --explore`: a ladder of thresholds. Nothing is written."""

from functools import partial
from pathlib import Path
from typing import Any

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.session import Session
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.formatting import aligned
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.report.ladder import Ladder, explore_thresholds


def explore(session: Session, device: str | None, *, sites: bool, plot: str | None) -> None:
    """Answer with the ladder under the rule in force, of all `sites` too; `plot` is the file of a picture of it."""
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.report.plots import canvas
    from nullbooth_cli.report.plots.ladder import draw_ladder

    if plot:
        canvas.check_picture(plot)
    store = session.open()
    require(stage_states(session.config, session.prompts, store), "covariance", session.url)
    ladder = explore_thresholds(session.config, store, pick_device(device))
    if plot:
        draw_ladder(ladder, Path(plot))
        session.terminal.note(f"drawn: {plot}")
    session.terminal.answer(ladder, partial(draw_tables, sites=sites))
    session.terminal.next(next_command.another_threshold(session.options, ladder.rule.name))


def draw_tables(ladder: Ladder, *, sites: bool = False) -> list[Any]:
    """All sites together at every rung, a star at the rung in force; then, with `sites`, each site at every rung."""
    values = aligned([rung.value for rung in ladder.ladder])
    drawn = [f"{ladder.store}, all sites (* is in force):", _table_of_totals(ladder, values)]
    if not ladder.heldout:
        drawn.append(
            "no held-out prompts: set heldout_prompts and collect again to measure leakage on prompts that were not collected"
        )
    if sites:
        layers, ending = shortened([site.layer for site in ladder.ladder[0].sites])
        drawn += ["", _table_by_site(ladder, layers, values), *([f"layers end in {ending}"] if ending else [])]
    return drawn


def _table_by_site(ladder: Ladder, layers: list[str], values: list[str]) -> Any:
    columns = ["layer", "feature", "timestep", ladder.rule.name, "null_dim", "dim", "leakage", "held-out", ""]
    rows: list[list[str]] = []
    for i, layer in enumerate(layers):
        rows += [[""] * len(columns)] if i else []
        for rung, value in zip(ladder.ladder, values, strict=True):
            site = rung.sites[i]
            cells = [layer, site.feature, site.key, value, str(site.null_dim), str(site.dim)]
            noise = "below the noise floor" if site.below_noise else ""
            rows.append([*cells, f"{site.leakage:.2e}", _heldout(site.heldout_leakage), noise])
    return table(columns, rows, right=frozenset({3, 4, 5, 6, 7}), drop=("dim", "timestep", "held-out"))


def _table_of_totals(ladder: Ladder, values: list[str]) -> Any:
    rows = [
        [
            value + (" *" if rung is ladder.in_force else "  "),
            str(rung.null_dim),
            f"{100 * rung.null_dim / rung.dim:.1f} %",
            f"{rung.largest_leakage:.2e}",
            _heldout(rung.largest_heldout_leakage),
            str(rung.empty),
            str(rung.below_noise),
        ]
        for rung, value in zip(ladder.ladder, values, strict=True)
    ]
    columns = [ladder.rule.name, "null_dim", "share", "largest leakage", "held-out", "empty sites", "below noise"]
    return table(columns, rows, right=frozenset(range(7)), drop=("share", "empty sites"))


def _heldout(leakage: float | None) -> str:
    return "" if leakage is None else f"{leakage:.2e}"
