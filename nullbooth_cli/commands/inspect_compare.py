"""`nullbooth inspect` of two stores."""

from dataclasses import replace
from typing import Any

from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.report import compare_stores, documents


def answer_comparison(session: Session, other: str, layer: str | None, feature: str | None, site: str | None) -> None:
    """Answer with two stores side by side."""
    from nullbooth_cli.datatypes import choose_sites

    second = start(replace(session.common, config=None, store=other))
    stores = session.open_finished(), second.open_finished()
    sites = choose_sites(stores[0].sites, layer, feature, site)
    compared = compare_stores.compare_stores(session.config, stores[0], second.config, stores[1], sites)
    session.terminal.answer(documents.compare_document(compared), _draw_compared)


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
