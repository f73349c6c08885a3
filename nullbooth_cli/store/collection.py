"""Changes of collect that touch several groups of a store: a new collection, more prompts, released features."""

from collections.abc import Sequence

from nullbooth_cli.datatypes import Site
from nullbooth_cli.store.layout import Layout
from nullbooth_cli.store.progress_cells import RELEASED
from nullbooth_cli.store.store import Store


def create_collection(store: Store, *, sites: Sequence[Site], num_steps: int, num_rows: int, layout: Layout) -> None:
    """Remove everything that was collected, and make room for `num_rows` prompts."""
    store.delete("parts")
    store.remove_rows()
    store.features.create(sites, num_steps, num_rows, layout)
    store.write_sites(sites)
    store.progress.create("collect", layout.num_units(num_rows))


def extend_collection(store: Store, num_rows: int) -> None:
    """Make room for `num_rows` prompts in all; the present ones stay."""
    layout = store.layout
    if layout.keeps_features:
        store.features.extend(store.sites, num_rows)
    store.progress.extend("collect", layout.num_units(num_rows))


def release_units(store: Store, units: Sequence[int]) -> None:
    """Remove the features of units. Their cells are marked first, so that a kill leaves nothing that looks whole."""
    store.progress.mark("collect", units, RELEASED)
    for site in store.sites:
        for number in range(len(store.blocks(site))):
            store.features.remove(site, number, units)
