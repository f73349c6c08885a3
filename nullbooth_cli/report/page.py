"""One page with everything about a store. It needs no network and no other file.

`web/page.html` is the page. It draws from one JSON document with plotly, whose script is part of the file, and uses
`web/page.css` and `web/page.js`, which all pages share. `web/plotly-basic.min.js` is plotly.js with scatter, bar and pie alone,
as the package plotly.js-basic-dist-min of npm has it. Nothing of the document becomes markup: a prompt with a tag in it is shown,
not run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli import __version__
from nullbooth_cli.formatting import without_shared_ending
from nullbooth_cli.nullspace.budget import TaskBudget
from nullbooth_cli.nullspace.spectrum import ADVISED_LEAKAGE
from nullbooth_cli.pipeline.state import StageState, stage_states
from nullbooth_cli.report.files import writing
from nullbooth_cli.report.headline import Answer, threshold_answers
from nullbooth_cli.report.inspection import InspectTotals, Rule, SiteReport, spectra_of, warning_lines, worst_first
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.ladder import Ladder, RungTotals
from nullbooth_cli.report.names import Called, site_name
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.report.plots.tasks import mean_energy, mean_heldout
from nullbooth_cli.report.status import StageReport, stage_report
from nullbooth_cli.settings.config import STAGES
from nullbooth_cli.store import Store

MOST_POINTS = 128  # of a spectrum: a chart shows no more
FEWEST_POINTS = 10
MOST_TOGETHER = 7_000  # points of the spectra of all sites: a tenth of a megabyte
MOST_ALONE = 50_000  # points of the spectra of single timesteps together: half a megabyte
DATA = '<script id="data" type="application/json"></script>'
PLOTLY = '<script id="plotly"></script>'
COMMON = '<script id="common"></script>'
STYLE = "<style></style>"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ThinSpectrum:
    """Some eigenvalues, largest first, with their places, counted from 1; the first and the last are included."""

    place: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PageStage(StageReport):
    """A stage, and about how long its units took: at the pace of its last run, None where no pace was noted."""

    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class PageSite(SiteReport):
    """An entry of the inspect report with its name and its spectrum."""

    name: str
    spectrum: ThinSpectrum


@dataclass(frozen=True, kw_only=True)
class PageEvolution:
    """A site over the timesteps from step `first_step` on; each tuple has one value per timestep, None where there is none.

    `spectra` are eigenvalues at the places `place`, the same at every timestep.
    """

    name: str
    layer: str
    feature: str
    dim: int
    first_step: int
    timesteps: tuple[float, ...]
    place: tuple[int, ...]
    spectra: tuple[tuple[float, ...], ...]
    null_dim: tuple[float | None, ...]
    effective_rank: tuple[float | None, ...]
    leakage: tuple[float | None, ...]
    heldout_leakage: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class PageTask:
    """A hard task over all sites of the page: null dimensions before and after it, and the mean energies that it met."""

    name: str
    null_dim_before: int
    null_dim: int
    dim: int
    energy: float
    heldout_energy: float | None
    leakage: float


@dataclass(frozen=True, kw_only=True)
class PageData:
    """The document that the page draws: its answers, the inspect report with its spectra, the ladder, settings, stages, prompts.

    The sites are in the order of their leakage, the worst first. `ending` is what the names of their layers are without.
    """

    version: str
    store: str
    scope: str
    rule: Rule
    totals: InspectTotals
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]
    advised_leakage: float
    ladder: tuple[RungTotals, ...]
    ending: str
    settings: Mapping[str, str]
    packages: Mapping[str, str]
    stages: Mapping[str, PageStage]
    prompts: tuple[str, ...]
    sites: tuple[PageSite, ...]
    tasks: tuple[PageTask, ...]
    evolutions: tuple[PageEvolution, ...]


def page_data(source: PictureSource, evolutions: Sequence[SiteOverTimesteps], ladder: Ladder) -> PageData:
    """The document of the page of a store; the ladder is of all of its sites. Cost: about 1 kB per site and timestep."""
    report, store, called = source.report, source.store, source.called
    entries = worst_first(report.sites)
    points = points_of_each(sum(len(each.eigenvalues) for each in evolutions), MOST_ALONE)
    points_pooled = points_of_each(len(entries), MOST_TOGETHER)
    states, records = stage_states(source.config, source.prompts, store), store.records
    settings = {name: value for stage in STAGES for name, value in records[stage]["settings"].items()}
    return PageData(
        version=__version__,
        store=store.url,
        scope=report.scope,
        rule=report.rule,
        totals=report.totals,
        answers=threshold_answers(report, ladder),
        warnings=tuple(warning_lines(report.sites, called)),
        advised_leakage=ADVISED_LEAKAGE,
        ladder=tuple(map(_totals, ladder.ladder)),
        ending=without_shared_ending(list(called))[1],
        settings={name: str(value) for name, value in settings.items()},
        packages=store.packages,
        stages={stage: _stage(store, stage, state) for stage, state in states.items()},
        prompts=tuple(prompt.text for prompt in source.prompts),
        sites=tuple(
            PageSite(
                **_values(entry),
                name=site_name(called, entry.layer, entry.feature, entry.timestep),
                spectrum=thin_spectrum(eigenvalues, points_pooled),
            )
            for entry, eigenvalues in zip(entries, spectra_of(store, entries), strict=True)
        ),
        tasks=tuple(_task(task) for task in report.tasks if task.sites),
        evolutions=tuple(_evolution(evolution, called, points) for evolution in evolutions),
    )


def write_page(path: Path, data: PageData) -> Path:
    """Write the page of a store. Raises ResourceError if it cannot be written. Cost: 1.2 MB for plotly's script."""
    return fill_page(path, "page.html", data)


def fill_page(path: Path, template: str, data: object) -> Path:
    """Write a page of the folder web/ with the dataclass that it draws. Raises ResourceError if it cannot be written."""

    def source(name: str) -> str:
        return files("nullbooth_cli.report").joinpath("web", name).read_text(encoding="utf-8")

    # The only markup that ends a script element begins with "<", so no "<" may be part of the data.
    text = json.dumps(to_json(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = source(template)
    parts = ((STYLE, source("page.css")), (DATA, text), (PLOTLY, source("plotly-basic.min.js")), (COMMON, source("page.js")))
    for empty, content in parts:
        page = page.replace(empty, empty.replace("></", f">{content}</"), 1)
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return path


def points_of_each(num_spectra: int, most: int) -> int:
    """The number of points of each of so many spectra, about `most` together, so that the page of a large model stays small."""
    return min(MOST_POINTS, max(FEWEST_POINTS, most // max(num_spectra, 1)))


def thin_spectrum(eigenvalues: Floats, most: int = MOST_POINTS) -> ThinSpectrum:
    """At most `most` of the eigenvalues `[D]`, ascending, with three digits: on a log scale no more are seen."""
    places = np.unique(np.linspace(1, len(eigenvalues), min(most, len(eigenvalues))).round().astype(int))
    values = eigenvalues[::-1][places - 1]
    return ThinSpectrum(tuple(places.tolist()), tuple(float(f"{value:.3g}") for value in values))


def _stage(store: Store, stage: str, state: StageState) -> PageStage:
    pace = store.progress.pace(stage)
    seconds = None if pace is None else pace * state.units_done
    return PageStage(**_values(stage_report(store, stage, state)), seconds=seconds)


def _task(task: TaskBudget) -> PageTask:
    return PageTask(
        name=task.name,
        null_dim_before=sum(each.null_dim_before for each in task.sites),
        null_dim=sum(each.null_dim for each in task.sites),
        dim=sum(each.dim for each in task.sites),
        energy=mean_energy(task),
        heldout_energy=mean_heldout(task),
        leakage=max(each.leakage for each in task.sites),
    )


def _values(report: SiteReport | StageReport) -> dict[str, Any]:
    """The fields that make a dataclass as keywords, its values as they are."""
    return {each.name: getattr(report, each.name) for each in fields(report) if each.init}


def _totals(rung: RungTotals) -> RungTotals:
    """A rung without its sites."""
    return RungTotals(**{each.name: getattr(rung, each.name) for each in fields(RungTotals)})


def _evolution(found: SiteOverTimesteps, called: Called, points: int) -> PageEvolution:
    spectra = [thin_spectrum(values, points) for values in found.eigenvalues]
    return PageEvolution(
        name=site_name(called, found.site.layer, found.site.feature),
        layer=found.site.layer,
        feature=found.site.feature,
        dim=found.site.dim,
        first_step=found.site.first_step,
        timesteps=tuple(float(f"{timestep:.5g}") for timestep in found.timesteps),
        place=spectra[0].place,
        spectra=tuple(each.value for each in spectra),
        null_dim=_numbers(found.null_dim),
        effective_rank=_numbers(found.effective_rank),
        leakage=_numbers(found.leakage),
        heldout_leakage=_numbers(found.heldout_leakage),
    )


def _numbers(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(f"{value:.4g}") for value in values)
