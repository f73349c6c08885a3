"""Draws the pictures of a finished store for a report, and computes the numbers behind them."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import moment_of, pooled
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.report.inspection import most_leaking, spectra_of
from nullbooth_cli.report.ladder import explore_thresholds
from nullbooth_cli.report.names import site_name
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps, between_layers, over_timesteps
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.report.plots.canvas import check_picture

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """The pictures to draw: plots into the folder `plots`, one page into the file `html`, the attention maps of a prompt.

    `attention` is the text of a prompt, its id, or the beginning of one; its picture goes into `plots`, else into the current
    folder. `moments` adds the second moment of every site. Raises ConfigError for a format that cannot be drawn.
    """

    plots: Path | None = None
    html: Path | None = None
    attention: str | None = None
    moments: bool = False
    picture_format: str = "png"

    def __post_init__(self) -> None:
        check_picture(f"picture.{self.picture_format}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is drawn."""
        return not (self.plots or self.html or self.attention)

    def path(self, name: str) -> Path:
        """The file of a picture."""
        return (self.plots or Path()) / f"{name}.{self.picture_format}"


def draw_inspection(
    source: PictureSource, request: PictureRequest, device: "torch.device"
) -> Generator[Event, None, tuple[Path, ...]]:
    """Draw the requested pictures, and return the files.

    Cost: for plots and the page, a decomposition for every site and timestep (read where the scope is timestep).
    """
    drawn: list[Path] = []
    if request.attention:
        drawn.append(_draw_attention(source, request, request.attention))
        yield _drawn(drawn[-1])
    if request.plots or request.html:
        evolutions: list[SiteOverTimesteps] = []
        varying = [site for site in source.sites if not site.timestep_free]
        for evolution in over_timesteps(source.store, device, source.config, varying) if varying else ():
            evolutions.append(evolution)
            yield Progress("spectra", len(evolutions), len(varying), f"every timestep of {evolution.site.name}")
        for path in _plots(source, request, evolutions) if request.plots else ():
            drawn.append(path)
            yield _drawn(path)
        if request.html:
            from nullbooth_cli.report.page import page_data, write_page

            ladder = explore_thresholds(source.config, source.store, device)
            drawn.append(write_page(request.html, page_data(source, evolutions, ladder)))
            yield _drawn(drawn[-1])
    return tuple(drawn)


def _drawn(path: Path) -> Note:
    return Note(f"drawn: {path}")


def _plots(source: PictureSource, request: PictureRequest, evolutions: Sequence[SiteOverTimesteps]) -> Iterator[Path]:
    from nullbooth_cli.report.plots import layers, sites, tasks, timesteps

    entries, called = source.report.sites, source.called
    shown = most_leaking(entries)  # one per timestep would be too many pictures
    yield from sites.draw_spectra(shown, spectra_of(source.store, shown), called, request.path)
    yield sites.draw_leakage(shown, called, request.path("leakage"))
    if any(task.sites for task in source.report.tasks):
        yield tasks.draw_budget(source.report.tasks, request.path("tasks"))
    if evolutions:
        yield from timesteps.draw_maps(evolutions, called, request.path)
        yield timesteps.draw_evolution(evolutions, called, request.path("evolution"))
        yield from timesteps.draw_similarity(evolutions, called, request.path)
    yield timesteps.draw_distribution(evolutions, entries, request.path("distribution"))
    if source.report.scope == "pooled":
        yield from layers.draw_layers(list(between_layers(source.store, source.sites)), called, request.path)
    for site in source.sites if request.moments else ():
        moment = moment_of(pooled(source.store, site))
        path = request.path(f"moment-{site.name}")
        name = site_name(called, site.layer, site.feature) + f", a factor of {len(moment.kept)}" * moment.is_factored
        yield sites.draw_moment(name, moment.second_moment, mean=moment.mean, count=moment.count, path=path)


def _draw_attention(source: PictureSource, request: PictureRequest, wanted: str) -> Path:
    from nullbooth_cli.pipeline.attention import find_prompt  # imports torch, which a table does not need
    from nullbooth_cli.report.plots.attention import draw_attention

    store = source.store
    prompt = find_prompt(source.config, store, wanted)
    maps = store.attention.read(prompt)
    shown = {layer for site in source.sites for layer, _ in site.projections}
    chosen = [layer for layer in maps.layers if layer in shown]
    if not chosen:
        raise ConfigError(
            "no layer that passes the filters has attention maps", f"choose one of these layers: {', '.join(maps.layers)}"
        )
    return draw_attention(prompt.text, maps, store.schedule(), request.path(f"attention-{prompt.id}"), chosen)
