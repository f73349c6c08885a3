"""`nullbooth inspect` of two stores."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.datatypes import choose_sites
from nullbooth_cli.formatting import listed
from nullbooth_cli.report.compare_stores import Comparison, compare_stores

# Columns in the order in which they are left out on a narrow terminal.
DROPPED = ("held-out A", "held-out B", "dim", "leakage A", "leakage B", "chance", "null A", "null B", "overlap")
WORDS = ("layer", "feature", "timestep")


def answer_comparison(session: Session, other: str, *, layer: str | None, feature: str | None, site: str | None) -> None:
    """Answer with the store of the session and another one side by side; the filters choose sites of the first."""
    second = start(replace(session.common, config=None, store=other))
    store, other_store = session.open_finished(), second.open_finished()
    sites = choose_sites(store.sites, layer, feature, site)
    session.terminal.answer(compare_stores(session.config, store, second.config, other_store, sites), draw_comparison)


def draw_comparison(comparison: Comparison) -> list[Any]:
    """The settings that differ, a row for each site of both stores (A and B), and the totals."""
    layers, ending = shortened([site.layer for site in comparison.sites])
    columns = {name: cells for name, cells in _columns(comparison, layers).items() if any(cells)}
    if comparison.scope != "timestep":
        del columns["timestep"]
    right = frozenset(i for i, name in enumerate(columns) if name not in WORDS)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    drawn = table(list(columns), rows, right=right, drop=DROPPED)
    above = [
        *(f"{letter} = {url}" for letter, url in zip("AB", comparison.stores, strict=True)),
        *(f"  {row.field}: {row.values[0]} | {row.values[1]}" for row in comparison.differences),
        *(f"only in {letter}: {listed(names)}" for letter, names in zip("AB", comparison.only_in, strict=True) if names),
    ]
    return [*above, "", drawn, *([f"layers end in {ending}"] if ending else []), _summary(comparison)]


def _columns(comparison: Comparison, layers: list[str]) -> dict[str, list[str]]:
    sites = comparison.sites

    def leakages(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[list[str], list[str]]:
        first, second = zip(*pairs, strict=True)
        return [_leakage(value) for value in first], [_leakage(value) for value in second]

    leakage, heldout = leakages(site.leakage for site in sites), leakages(site.heldout_leakage for site in sites)
    crossed = leakages(site.leakage_on_the_other for site in sites)
    return {
        "layer": layers,
        "feature": [site.feature for site in sites],
        "timestep": [site.key for site in sites],
        "dim": [str(site.dim) for site in sites],
        "null A": [str(site.null_dim[0]) for site in sites],
        "null B": [str(site.null_dim[1]) for site in sites],
        "overlap": [f"{site.overlap:.3f}" for site in sites],
        "chance": [f"{site.chance:.3f}" for site in sites],
        "leakage A": leakage[0],
        "leakage B": leakage[1],
        "held-out A": heldout[0],
        "held-out B": heldout[1],
        "A on B's": crossed[0],
        "B on A's": crossed[1],
    }


def _leakage(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _summary(comparison: Comparison) -> str:
    totals = comparison.totals
    return (
        f"{totals.sites} sites: {totals.null_dim[0]} against {totals.null_dim[1]} of {totals.dim} dimensions null, "
        f"mean overlap {totals.mean_overlap:.3f}; A leaks at most {totals.largest_leakage_on_the_other[0]:.2g} "
        f"on the prompts of B, B at most {totals.largest_leakage_on_the_other[1]:.2g} on those of A"
    )
