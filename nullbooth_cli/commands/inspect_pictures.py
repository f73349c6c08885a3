"""What `nullbooth inspect` draws, and how it compares two stores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.commands.session import Session
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.report import documents, over_timesteps
from nullbooth_cli.store import Store


@dataclass(frozen=True)
class PictureOptions:
    """What is asked for, beside the table."""

    plots: str | None
    picture_format: str
    attention: str | None
    html: str | None
    device: str | None
    moments: bool

    def __post_init__(self) -> None:
        from nullbooth_cli.report.plots.canvas import check_picture

        check_picture(f"picture.{self.picture_format}")


def draw_pictures(session: Session, store: Store, document: dict[str, Any], looks: PictureOptions) -> None:
    """Draw what is asked for; the document then lists the files."""
    if not (looks.plots or looks.attention or looks.html):
        return
    drawn: list[str] = []
    session.terminal.follow(_draw_pictures(session, store, document, looks, drawn))
    document["files"] = drawn


def _draw_pictures(
    session: Session, store: Store, document: dict[str, Any], looks: PictureOptions, drawn: list[str]
) -> Iterator[Event]:
    def done(path: Path) -> Note:
        drawn.append(str(path))
        return Note(f"drawn: {path}")

    if looks.attention:
        yield done(_draw_attention(session, store, document, looks))
    if looks.plots or looks.html:
        sites = _sites_of(store, document)
        courses: list[over_timesteps.SiteOverTimesteps] = []
        varying = [site for site in sites if not site.timestep_free]
        if varying:
            from nullbooth_cli.model.device import pick_device

            for course in over_timesteps.over_timesteps(store, pick_device(looks.device), session.config, varying):
                courses.append(course)
                yield Progress("spectra", len(courses), len(varying), f"every timestep of {course.site.name}")
        for path in _plots(store, document, looks, courses, sites) if looks.plots else ():
            yield done(path)
        if looks.html:
            from nullbooth_cli.report.page import write_page

            yield done(write_page(Path(looks.html), session.config, store, document, courses, session.prompts))


def _sites_of(store: Store, document: dict[str, Any]) -> list[Site]:
    """The sites that the entries of a document are about."""
    names = {f"{entry['layer']}.{entry['feature']}" for entry in document["sites"]}
    return [site for site in store.sites if site.name in names]


def _plots(
    store: Store,
    document: dict[str, Any],
    looks: PictureOptions,
    courses: list[over_timesteps.SiteOverTimesteps],
    sites: list[Site],
) -> Iterator[Path]:
    from nullbooth_cli.report.plots import timesteps
    from nullbooth_cli.report.plots.sites import draw_leakage, draw_moment, draw_spectra

    folder, ending, entries = Path(looks.plots or "."), looks.picture_format, document["sites"]
    shown = documents.most_leaking(entries)  # per timestep there are too many to draw: --timestep chooses others
    yield from draw_spectra(shown, documents.spectra_of(store, shown), folder, ending)
    yield draw_leakage(shown, folder / f"leakage.{ending}")
    if courses:
        yield from timesteps.draw_maps(courses, folder, ending)
        yield timesteps.draw_evolution(courses, folder, ending)
        yield from timesteps.draw_similarity(courses, folder, ending)
    yield timesteps.draw_distribution(courses, entries, folder / f"distribution.{ending}")
    if document["scope"] == "pooled":
        yield from timesteps.draw_layers(list(over_timesteps.between_layers(store, sites)), folder, ending)
    for site in sites if looks.moments else ():
        sums = pooled(store, site)
        path = folder / f"moment-{site.name}.{ending}"
        yield draw_moment(site.name, second_moment(sums), sums.mean, sums.count, path)


def _draw_attention(session: Session, store: Store, document: dict[str, Any], looks: PictureOptions) -> Path:
    from nullbooth_cli.pipeline.attention import find_prompt
    from nullbooth_cli.report.plots.attention import draw_attention

    prompt = find_prompt(session.config, store, looks.attention or "")
    maps = store.attention.read(prompt)
    wanted = {layer for site in _sites_of(store, document) for layer, _ in site.projections}
    layers = [layer for layer in maps.layers if layer in wanted]
    if not layers:
        raise ConfigError("no layer that passes the filters has attention maps", f"they are of {', '.join(maps.layers)}")
    path = Path(looks.plots or ".") / f"attention-{prompt.id}.{looks.picture_format}"
    return draw_attention(prompt.text, maps, store.schedule(), path, layers)
