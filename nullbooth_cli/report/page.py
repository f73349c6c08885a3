"""One page with everything about a store. It needs no network and no other file.

`web/page.html` is the page. It draws from one JSON document with plotly, whose script is part of the file, and uses
`web/page.css` and `web/page.js`, which all pages share. Nothing of the document becomes markup: a prompt with a tag in it is
shown, not run.
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
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.pipeline.state import StageState, stage_states
from nullbooth_cli.report.inspection import InspectTotals, Rule, SiteReport, spectra_of
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.report.status import StageReport, stage_report
from nullbooth_cli.settings.config import STAGES
from nullbooth_cli.store import Store

MOST_POINTS = 128  # of a spectrum: a chart shows no more
DATA = '<script id="data" type="application/json"></script>'
PLOTLY = '<script id="plotly"></script>'
COMMON = '<script id="common"></script>'
STYLE = "<style></style>"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ThinSpectrum:
    """Up to `MOST_POINTS` eigenvalues, largest first, with their places, counted from 1; the first and the last are included."""

    place: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PageStage(StageReport):
    """A stage, and about how long its units took: at the pace of its last run, None where no pace was noted."""

    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class PageSite(SiteReport):
    """An entry of the inspect report with its spectrum."""

    spectrum: ThinSpectrum


@dataclass(frozen=True, kw_only=True)
class PageEvolution:
    """A site over the timesteps; each tuple has one value per timestep, None where there is none."""

    layer: str
    feature: str
    dim: int
    timesteps: tuple[float, ...]
    spectra: tuple[ThinSpectrum, ...]
    null_dim: tuple[float | None, ...]
    effective_rank: tuple[float | None, ...]
    leakage: tuple[float | None, ...]
    heldout_leakage: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class PageData:
    """The document that the page draws: the inspect report with its spectra, settings, stages and prompts."""

    version: str
    store: str
    scope: str
    rule: Rule
    totals: InspectTotals
    settings: Mapping[str, str]
    packages: Mapping[str, str]
    stages: Mapping[str, PageStage]
    prompts: tuple[str, ...]
    sites: tuple[PageSite, ...]
    evolutions: tuple[PageEvolution, ...]


def page_data(source: PictureSource, evolutions: Sequence[SiteOverTimesteps]) -> PageData:
    """The document of the page of a store. Cost: about 1 kB per site and timestep."""
    report, store = source.report, source.store
    states, records = stage_states(source.config, source.prompts, store), store.records
    settings = {name: value for stage in STAGES for name, value in records[stage]["settings"].items()}
    return PageData(
        version=__version__,
        store=store.url,
        scope=report.scope,
        rule=report.rule,
        totals=report.totals,
        settings={name: str(value) for name, value in settings.items()},
        packages=store.packages,
        stages={stage: _stage(store, stage, state) for stage, state in states.items()},
        prompts=tuple(prompt.text for prompt in source.prompts),
        sites=tuple(
            PageSite(**_values(entry), spectrum=thin_spectrum(eigenvalues))
            for entry, eigenvalues in zip(report.sites, spectra_of(store, report.sites), strict=True)
        ),
        evolutions=tuple(map(_evolution, evolutions)),
    )


def write_page(path: Path, data: PageData) -> Path:
    """Write the page of a store. Raises ResourceError if it cannot be written. Cost: 5 MB for plotly's script."""
    return fill_page(path, "page.html", data)


def fill_page(path: Path, template: str, data: object) -> Path:
    """Write a page of the folder web/ with the dataclass that it draws. Raises ResourceError if it cannot be written."""
    from plotly.offline import get_plotlyjs

    def source(name: str) -> str:
        return files("nullbooth_cli.report").joinpath("web", name).read_text(encoding="utf-8")

    # The only markup that ends a script element begins with "<", so no "<" may be part of the data.
    text = json.dumps(to_json(data), allow_nan=False).replace("<", "\\u003c")
    page = source(template)
    parts = ((STYLE, source("page.css")), (DATA, text), (PLOTLY, get_plotlyjs()), (COMMON, source("page.js")))
    for empty, content in parts:
        page = page.replace(empty, empty.replace("></", f">{content}</"), 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error}", "check the folder and its permissions") from error
    return path


def thin_spectrum(eigenvalues: Floats) -> ThinSpectrum:
    """At most `MOST_POINTS` of the eigenvalues `[D]`, ascending, with four digits."""
    places = np.unique(np.linspace(1, len(eigenvalues), min(MOST_POINTS, len(eigenvalues))).round().astype(int))
    values = eigenvalues[::-1][places - 1]
    return ThinSpectrum(tuple(places.tolist()), tuple(float(f"{value:.4g}") for value in values))


def _stage(store: Store, stage: str, state: StageState) -> PageStage:
    pace = store.progress.pace(stage)
    seconds = None if pace is None else pace * state.units_done
    return PageStage(**_values(stage_report(store, stage, state)), seconds=seconds)


def _values(report: SiteReport | StageReport) -> dict[str, Any]:
    """The fields of a dataclass as keywords, its values as they are."""
    return {each.name: getattr(report, each.name) for each in fields(report)}


def _evolution(found: SiteOverTimesteps) -> PageEvolution:
    return PageEvolution(
        layer=found.site.layer,
        feature=found.site.feature,
        dim=found.site.dim,
        timesteps=tuple(found.timesteps.tolist()),
        spectra=tuple(map(thin_spectrum, found.eigenvalues)),
        null_dim=_numbers(found.null_dim),
        effective_rank=_numbers(found.effective_rank),
        leakage=_numbers(found.leakage),
        heldout_leakage=_numbers(found.heldout_leakage),
    )


def _numbers(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(f"{value:.5g}") for value in values)
