"""Which pictures are drawn of a store, and into which files."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.report.pictures import PictureRequest, draw_inspection
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, prompts_of

Run = tuple[Config, Store]


def draw(source: PictureSource, request: PictureRequest) -> tuple[list[str], list[Event]]:
    """The names of the files, and the events."""
    events, generator = [], draw_inspection(source, request, pick_device("cpu"))
    while True:
        try:
            events.append(next(generator))
        except StopIteration as ended:
            return [path.name for path in ended.value], events


def source_of(config: Config, store: Store, **filters: str) -> PictureSource:
    return PictureSource(config, store, prompts_of(config), inspect_store(config, store, **filters))


def test_one_site_gets_its_plots_its_moment_and_a_page(finished: Run, tmp_path: Path) -> None:
    source = source_of(*finished, site="mid_block*q")
    (site,) = source.sites
    request = PictureRequest(plots=tmp_path, html=tmp_path / "page.html", moments=True, picture_format="svg")
    names, events = draw(source, request)
    assert names == [
        "spectra.svg",
        "leakage.svg",
        "timesteps-q.svg",
        "effective-rank-q.svg",
        "evolution.svg",
        "similarity-timesteps.svg",
        "distribution.svg",
        f"moment-{site.name}.svg",
        "page.html",
    ]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert [event.text for event in events if isinstance(event, Note)] == [f"drawn: {tmp_path / name}" for name in names]
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(1, 1)]


def test_in_scope_timestep_one_spectrum_a_site_and_no_overlap_of_layers(finished: Run, tmp_path: Path) -> None:
    config, store = finished
    place = shutil.copytree(store.path, tmp_path / "run.zarr")
    project = config.project.model_copy(update={"scope": "timestep"})
    stepwise = config.model_copy(update={"store": str(place), "project": project})
    source = source_of(stepwise, execute(stepwise, "project", force=True), layer="mid_block", feature="q")
    assert len(source.report.sites) == 4
    names, _ = draw(source, PictureRequest(plots=tmp_path / "plots"))
    assert "spectra.png" in names
    assert not [name for name in names if "layers" in name]


def test_a_site_that_the_timestep_does_not_change_has_no_evolution(finished: Run, tmp_path: Path) -> None:
    source = source_of(*finished, feature="k")
    assert all(site.timestep_free for site in source.sites)
    names, events = draw(source, PictureRequest(plots=tmp_path))
    assert names == ["spectra.png", "leakage.png", "distribution.png"]
    assert not [event for event in events if isinstance(event, Progress)]


def test_nothing_is_drawn_unless_requested(finished: Run) -> None:
    assert PictureRequest().is_empty
    assert draw(source_of(*finished), PictureRequest()) == ([], [])


def test_a_format_that_cannot_be_drawn_is_refused_first() -> None:
    with pytest.raises(ConfigError, match=r"cannot draw picture\.bmp"):
        PictureRequest(picture_format="bmp")
    request = PictureRequest(plots=Path("x"))
    assert request.path("a") == Path("x/a.png")
    assert replace(request, plots=None, picture_format="pdf").path("a") == Path("a.pdf")
