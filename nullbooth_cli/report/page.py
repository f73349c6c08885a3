"""One page that holds everything there is to see of a store, and needs nothing else: no network, no other file.

`page.html` is the page: it draws from one JSON document with plotly, whose script is put in as well, and with what `page.css` and
`page.js` have for every page. Nothing of the document becomes markup, so that a prompt with a tag in it is shown and not run.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli import __version__
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.report.documents import spectra_of, status_document
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store

POINTS = 128  # of a spectrum: more than that no chart shows
DATA = '<script id="data" type="application/json"></script>'
PLOTLY = '<script id="plotly"></script>'
COMMON = '<script id="common"></script>'
STYLE = "<style></style>"


def write_page(
    path: Path,
    config: Config,
    store: Store,
    document: dict[str, Any],
    courses: Sequence[SiteOverTimesteps],
    prompts: tuple[Prompt, ...],
) -> Path:
    """Write the report of an inspect document. Cost: 5 MB for plotly's script, and about 1 kB per site and timestep."""
    return fill_page(path, "page.html", page_document(config, store, document, courses, prompts))


def fill_page(path: Path, template: str, data: dict[str, Any]) -> Path:
    """Write a page of this package, with the data that it draws. Raises ResourceError if it cannot be written. Cost: 5 MB."""
    from plotly.offline import get_plotlyjs

    def source(name: str) -> str:
        return files("nullbooth_cli.report").joinpath("web", name).read_text(encoding="utf-8")

    # The only markup that a script element reads is its own end, so no "<" may stand in it.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
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


def page_document(
    config: Config, store: Store, document: dict[str, Any], courses: Sequence[SiteOverTimesteps], prompts: tuple[Prompt, ...]
) -> dict[str, Any]:
    """What the page shows: the inspect document, each spectrum and course, settings, stages with their times, prompts."""
    states = stage_states(config, prompts, store)
    stages = status_document(store.url, store, states)["stages"]
    for stage, found in stages.items():
        pace = store.progress.pace(stage)
        found["seconds"] = None if pace is None else pace * found["units_done"]
    records = store.records
    settings = {name: value for stage in STAGES for name, value in records[stage]["settings"].items()}
    return {
        "version": __version__,
        "store": store.url,
        "scope": document["scope"],
        "rule": document["rule"],
        "totals": document["totals"],
        "settings": {name: str(value) for name, value in settings.items()},
        "packages": store.packages,
        "stages": stages,
        "prompts": [prompt.text for prompt in prompts],
        "sites": [
            {**entry, "spectrum": _spectrum(eigenvalues)}
            for entry, eigenvalues in zip(document["sites"], spectra_of(store, document["sites"]), strict=True)
        ],
        "courses": [
            {
                "layer": course.site.layer,
                "feature": course.site.feature,
                "dim": course.site.dim,
                "timesteps": course.timesteps.tolist(),
                "spectra": [_spectrum(eigenvalues) for eigenvalues in course.eigenvalues],
                "null_dim": _numbers(course.null_dim),
                "effective_rank": _numbers(course.effective_rank),
                "leakage": _numbers(course.leakage),
                "heldout_leakage": _numbers(course.heldout_leakage),
            }
            for course in courses
        ],
    }


def _spectrum(eigenvalues: NDArray[np.float64]) -> dict[str, list[float]]:
    """Up to `POINTS` eigenvalues, largest first, each with its place from 1 on; the first and the last are among them."""
    places = np.unique(np.linspace(1, len(eigenvalues), min(POINTS, len(eigenvalues))).round().astype(int))
    return {"place": places.tolist(), "value": [float(f"{value:.4g}") for value in eigenvalues[::-1][places - 1]]}


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in values]
