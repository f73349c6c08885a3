"""What `nullbooth inspect` draws, and how it compares two stores."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullbooth_cli import analysis, report
from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.console import shortened, table
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.events import Event, Note, Progress
from nullbooth_cli.pooling import pooled, second_moment
from nullbooth_cli.store import Site, Store


@dataclass(frozen=True)
class Looks:
    """What is asked for, beside the table."""

    plots: str | None
    picture_format: str
    attention: str | None
    html: str | None
    device: str | None
    moments: bool

    def __post_init__(self) -> None:
        from nullbooth_cli.plots import check_picture

        check_picture(f"picture.{self.picture_format}")


def look(session: Session, store: Store, document: dict[str, Any], looks: Looks) -> None:
    """Draw what is asked for; the document then lists the files."""
    if not (looks.plots or looks.attention or looks.html):
        return
    drawn: list[str] = []
    session.terminal.follow(_look(session, store, document, looks, drawn))
    document["files"] = drawn


def _look(session: Session, store: Store, document: dict[str, Any], looks: Looks, drawn: list[str]) -> Iterator[Event]:
    def done(path: Path) -> Note:
        drawn.append(str(path))
        return Note(f"drawn: {path}")

    if looks.attention:
        yield done(_draw_attention(session, store, document, looks))
    if looks.plots or looks.html:
        sites = _sites_of(store, document)
        courses: list[analysis.Course] = []
        varying = [site for site in sites if not site.timestep_free]
        if varying:
            from nullbooth_cli.model import pick_device

            for course in analysis.courses(store, pick_device(looks.device), session.config, varying):
                courses.append(course)
                yield Progress("spectra", len(courses), len(varying), f"every timestep of {course.site.name}")
        for path in _plots(store, document, looks, courses, sites) if looks.plots else ():
            yield done(path)
        if looks.html:
            from nullbooth_cli.page import write_page

            yield done(write_page(Path(looks.html), session.config, store, document, courses, session.prompts))


def _sites_of(store: Store, document: dict[str, Any]) -> list[Site]:
    """The sites that the entries of a document are about."""
    names = {f"{entry['layer']}.{entry['feature']}" for entry in document["sites"]}
    return [site for site in store.sites if site.name in names]


def _plots(
    store: Store, document: dict[str, Any], looks: Looks, courses: list[analysis.Course], sites: list[Site]
) -> Iterator[Path]:
    from nullbooth_cli import plots

    folder, ending, entries = Path(looks.plots or "."), looks.picture_format, document["sites"]
    shown = report.leakiest(entries)  # per timestep there are too many to draw: --timestep chooses others
    yield from plots.draw_spectra(shown, report.spectra_of(store, shown), folder, ending)
    yield plots.draw_leakage(shown, folder / f"leakage.{ending}")
    if courses:
        yield from plots.draw_maps(courses, folder, ending)
        yield plots.draw_evolution(courses, folder, ending)
        yield from plots.draw_similarity(courses, folder, ending)
    yield plots.draw_distribution(courses, entries, folder / f"distribution.{ending}")
    if document["scope"] == "pooled":
        yield from plots.draw_layers(list(analysis.between_layers(store, sites)), folder, ending)
    for site in sites if looks.moments else ():
        sum_xxt, sum_x, count = pooled(store, site)
        path = folder / f"moment-{site.name}.{ending}"
        yield plots.draw_moment(site.name, second_moment(sum_xxt, sum_x, count), sum_x / count, count, path)


def _draw_attention(session: Session, store: Store, document: dict[str, Any], looks: Looks) -> Path:
    from nullbooth_cli import plots
    from nullbooth_cli.attention import find_prompt

    prompt = find_prompt(session.config, store, looks.attention or "")
    maps = store.read_maps(prompt)
    wanted = {layer for site in _sites_of(store, document) for layer, _ in site.projections}
    layers = [layer for layer in maps.layers if layer in wanted]
    if not layers:
        raise ConfigError("no layer that passes the filters has attention maps", f"they are of {', '.join(maps.layers)}")
    path = Path(looks.plots or ".") / f"attention-{prompt.id}.{looks.picture_format}"
    return plots.draw_attention(prompt.text, maps, store.schedule(), path, layers)


def compare(session: Session, other: str, layer: str | None, feature: str | None, site: str | None) -> None:
    """Answer with two stores side by side."""
    from nullbooth_cli.store import choose_sites

    second = start(replace(session.common, config=None, store=other))
    stores = session.open_finished(), second.open_finished()
    sites = choose_sites(stores[0].sites, layer, feature, site)
    compared = analysis.compare(session.config, stores[0], second.config, stores[1], sites)
    session.terminal.answer(report.compare_document(compared), _draw_compared)


# What goes first where a terminal is narrow.
DROPPED = ("held-out A", "held-out B", "dim", "leakage A", "leakage B", "chance", "null A", "null B", "overlap")


def _draw_compared(document: dict[str, Any]) -> Any:
    sites = document["sites"]
    layers, ending = shortened([site["layer"] for site in sites])

    def both(key: str, form: str) -> list[list[str]]:
        return [["" if site[key][i] is None else format(site[key][i], form) for site in sites] for i in (0, 1)]

    null_dims, leakages, heldout, crossed = (
        both(key, form)
        for key, form in (
            ("null_dim", "d"),
            ("leakage", ".2e"),
            ("heldout_leakage", ".2e"),
            ("leakage_on_the_other", ".2e"),
        )
    )
    columns: list[tuple[str, list[str]]] = [
        ("layer", layers),
        ("feature", [site["feature"] for site in sites]),
        ("timestep", [site["key"] for site in sites]),
        ("dim", [str(site["dim"]) for site in sites]),
        ("null A", null_dims[0]),
        ("null B", null_dims[1]),
        ("overlap", [f"{site['overlap']:.3f}" for site in sites]),
        ("chance", [f"{site['chance']:.3f}" for site in sites]),
        ("leakage A", leakages[0]),
        ("leakage B", leakages[1]),
        ("held-out A", heldout[0]),
        ("held-out B", heldout[1]),
        ("A on B's", crossed[0]),
        ("B on A's", crossed[1]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells) and (name != "timestep" or document["scope"] == "timestep")]
    words = ("layer", "feature", "timestep")
    right = frozenset(i for i, (name, _) in enumerate(columns) if name not in words)
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    totals = document["totals"]
    said = [
        *(f"{letter} = {url}" for letter, url in zip("AB", document["stores"], strict=True)),
        *(f"  {row['field']}: {row['values'][0]} | {row['values'][1]}" for row in document["differences"]),
        *(f"only in {letter}: {', '.join(names)}" for letter, names in zip("AB", document["only_in"], strict=True) if names),
    ]
    summary = (
        f"{totals['sites']} sites: {totals['null_dim'][0]} against {totals['null_dim'][1]} of {totals['dim']} dimensions null, "
        f"mean overlap {totals['mean_overlap']:.3f}; A leaks at most {totals['largest_leakage_on_the_other'][0]:.2g} "
        f"on the prompts of B, B at most {totals['largest_leakage_on_the_other'][1]:.2g} on those of A"
    )
    drawn = table([name for name, _ in columns], rows, right=right, drop=DROPPED)
    return [*said, "", drawn, *([f"layers end in {ending}"] if ending else []), summary]
