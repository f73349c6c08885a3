"""`nullbooth inspect` of one store: its table or CSV, and the pictures that go with it."""

import csv
import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.draw import summary_line
from nullbooth_cli.commands.draw_tasks import draw_tasks
from nullbooth_cli.commands.session import Session
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.report.headline import preservation_answer
from nullbooth_cli.report.inspection import InspectReport, SiteReport, inspect_store, sparklines, warning_lines
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.report.pictures import PictureRequest, draw_inspection
from nullbooth_cli.store import Store

SPECTRUM = "spectrum"
# Columns in the order in which they are left out on a narrow terminal.
DROPPED = ("noise floor", "condition", SPECTRUM, "tokens", "weights", "eff. rank", "dim", "held-out")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """The options of the command that are about one store."""

    layer: str | None
    feature: str | None
    timestep: float | None
    site: str | None
    plots: str | None
    picture_format: str
    attention: str | None
    html: str | None
    device: str | None
    as_csv: bool


def answer_store(session: Session, options: InspectOptions) -> None:
    """Answer with the projectors of a finished store, after drawing the requested pictures."""
    store = session.open_finished()
    filters = {"layer": options.layer, "feature": options.feature, "site": options.site}
    report = inspect_store(session.config, store, timestep=options.timestep, **filters)
    report = _with_pictures(session, store, report, options)
    if options.as_csv:
        session.terminal.text(_csv(report))
    else:
        # Only on a terminal: the answer in a pipe does not depend on it.
        sparks = sparklines(store, report) if session.terminal.draws_on_screen else None
        session.terminal.answer(report, partial(draw_report, sparks=sparks))
    session.terminal.warn(warning_lines(report.sites))
    session.terminal.next(*next_command.after_inspect(session.options, session.url))


def _with_pictures(session: Session, store: Store, report: InspectReport, options: InspectOptions) -> InspectReport:
    request = PictureRequest(
        plots=Path(options.plots) if options.plots else None,
        html=Path(options.html) if options.html else None,
        attention=options.attention,
        moments=options.site is not None,
        picture_format=options.picture_format,
    )
    if request.is_empty:
        return report
    from nullbooth_cli.model.device import pick_device

    source = PictureSource(session.config, store, session.prompts, report)
    drawn = session.terminal.result_of(draw_inspection(source, request, pick_device(options.device)))
    return replace(report, files=tuple(map(str, drawn)))


def _csv(report: InspectReport) -> str:
    """A line for each entry of the report, with the keys of its JSON as columns."""
    text = io.StringIO()
    rows = [
        {key: value for key, value in to_json(site).items() if key != "arrays"}
        | {"weights": " ".join(site.weights), "warnings": "; ".join(site.warnings)}
        for site in report.sites
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw_report(report: InspectReport, sparks: list[str] | None = None) -> list[Any]:
    """A row for each entry, the weights of those that have several, and the totals; `sparks` are the spectra in characters."""
    sites = report.sites
    groups = {(site.layer, site.feature): site for site in sites if len(site.weights) > 1}
    named = [site.layer for site in sites]
    named += [layer for site in groups.values() for layer, _ in map(_split, site.weights)]
    shorter, ending = shortened(named)
    called = dict(zip(named, shorter, strict=True))
    columns = _columns(report, called, sparks)
    words = {"layer", "feature", "timestep", SPECTRUM}
    right = frozenset(i for i, name in enumerate(columns) if name not in words)
    drawn = table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], right=right, drop=DROPPED)
    shared = [f"{called[layer]} {feature} protects {_protected(site, called)}" for (layer, feature), site in groups.items()]
    tasks = draw_tasks(report.tasks, lambda name: name.replace(ending, "") if ending else name)
    notes = [f"layers end in {ending}"] if ending else []
    return [drawn, *notes, *shared, *tasks, summary_line(report), *_verdict_lines(report)]


def _verdict_lines(report: InspectReport) -> list[str]:
    """Whether the threshold is good: a store knows only how much leaks."""
    found = preservation_answer(report)
    return [f"preserves: {found.value}: {found.word} ({found.detail})", *([f"  {found.advice}"] if found.advice else [])]


def _columns(report: InspectReport, called: dict[str, str], sparks: list[str] | None) -> dict[str, list[str]]:
    sites = report.sites
    columns = {
        "layer": [called[site.layer] for site in sites],
        "feature": [site.feature for site in sites],
        "weights": [str(len(site.weights)) for site in sites],
        "timestep": [site.key for site in sites],
        "dim": [str(site.dim) for site in sites],
        "tokens": [f"{site.count:,}" for site in sites],
        "null_dim": [str(site.null_dim) for site in sites],
        "eff. rank": [f"{site.effective_rank:.1f}" for site in sites],
        "condition": [f"{site.condition:.1e}" if site.condition < float("inf") else "inf" for site in sites],
        "leakage": [f"{site.leakage:.2e}" for site in sites],
        "held-out": ["" if site.heldout_leakage is None else f"{site.heldout_leakage:.2e}" for site in sites],
        "noise floor": [f"{site.noise_floor:.0e}" for site in sites],
    }
    if sparks:
        columns[SPECTRUM] = sparks
    if report.totals.largest_heldout_leakage is None:
        del columns["held-out"]
    if report.scope == "pooled":
        del columns["timestep"]
    return columns


def _protected(site: SiteReport, called: dict[str, str]) -> str:
    """The weights of a site by their projections, layers called as in the table: `to_k and to_v of mid_block, up_blocks.0`."""
    projections: dict[str, list[str]] = {}
    for layer, projection in map(_split, site.weights):
        projections.setdefault(called[layer], []).append(projection)
    layers: dict[str, list[str]] = {}
    for layer, names in projections.items():
        layers.setdefault(" and ".join(names), []).append(layer)
    return "; ".join(f"{names} of {', '.join(of_them)}" for names, of_them in layers.items())


def _split(weight: str) -> tuple[str, str]:
    """(layer, projection) of a weight."""
    layer, _, projection = weight.removesuffix(".weight").removesuffix(".0").rpartition(".")
    return layer, projection
