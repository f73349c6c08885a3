"""How many objects each operation of a store reads: at a URL every one is a request that is paid for and waited for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.store import Cut, Decomposition, Layout, Store, create_collection
from tests.support.bucket import Place
from tests.support.counting import counted

SITES = tuple(Site(f"mid.{i}.attn2", "q", "input", (f"mid.{i}.attn2.to_q.weight",), False, 2, 3) for i in range(3))
STEPS, ROWS, UNITS = 3, 8, 4


def fill(store: Store) -> None:
    """Three sites, three timesteps in one chunk, eight prompts in four units, one projector a site."""
    layout = Layout("both", 2, "float32")
    store.write_schedule(tuple(Step(t, f"step_{t}", 999.0 - t, 1.0) for t in range(STEPS)))
    create_collection(store, sites=SITES, num_steps=STEPS, num_rows=ROWS, layout=layout)
    store.write_rows(0, [Prompt(f"prompt {row}") for row in range(ROWS)])
    store.write_record("collect", {"layout": vars(layout)})
    store.progress.commit("collect", range(UNITS))
    store.moments.create(SITES, STEPS, layout)
    store.projectors.create(SITES, dict.fromkeys((site.name for site in SITES), 1))
    for site in SITES:
        store.moments.write(site, range(STEPS), [(np.eye(3), np.ones(3), 1)] * STEPS)
        store.projectors.write_decomposition(site, 0, Decomposition(np.ones(3), np.eye(3), np.ones((2, 3)), 0.0))
        store.projectors.write_cut(site, 0, Cut(2, 0.0, None))


@pytest.fixture(params=["local", "remote"])
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens a filled store anew: nothing of it was read yet but the attributes."""
    if request.param == "local":
        fill(Store.create(tmp_path / "run.zarr", {}))
        return partial(Store.open, tmp_path / "run.zarr")
    place: Place = request.getfixturevalue("place")
    fill(place.create())
    return place.open


@pytest.fixture
def store(open_: Callable[[], Store]) -> Store:
    return open_()


def test_opening_reads_one_object(open_: Callable[[], Store]) -> None:
    with counted() as objects:
        again = open_()
        assert (len(again.sites), again.config, set(again.records)) == (3, {}, {"collect"})
    assert objects.read == ["zarr.json"]


def test_progress_reads_each_cell_once(store: Store) -> None:
    with counted() as objects:
        assert store.progress.done("collect").all()
    assert sorted(key for key in objects.read if "/c." in key) == [f"progress/collect/c.{unit}" for unit in range(UNITS)]
    assert len(objects.read) == UNITS + 1  # with the shape of the array
    assert not objects.listed


def test_moments_of_all_timesteps_read_each_chunk_once(store: Store) -> None:
    with counted() as objects:
        assert len(list(store.moments.read(SITES[0], range(STEPS)))) == STEPS
    chunks = [key for key in objects.read if "/c." in key]
    assert sorted(chunks) == [f"moments/{SITES[0].name}/{name}" for name in ("count/c.0", "sum_x/c.0.0", "sum_xxT/c.0.0.0")]
    assert not objects.reads("progress")
    assert len(objects.read) == 6  # with the shape of each array


def test_a_projector_reads_its_vectors_and_its_cut(store: Store) -> None:
    with counted() as objects:
        store.projectors.read_eigenvectors(SITES[0], 0)
        store.projectors.read_cut(SITES[0], 0)
    chunks = [key.removeprefix(f"projectors/{SITES[0].name}/") for key in objects.read if "/c." in key]
    assert sorted(chunks) == ["eigenvectors/c.0.0.0", "leakage/c.0.0", "null_dim/c.0"]
    assert len(objects.read) == 6  # with the shape of each array


def test_what_was_read_of_an_array_is_not_read_again(store: Store) -> None:
    """Shapes stay in memory until `reload`: a second read costs the chunks alone."""
    store.progress.cells("collect")
    with counted() as objects:
        store.progress.cells("collect")
    assert objects.read == [f"progress/collect/c.{unit}" for unit in range(UNITS)]
    store.reload()
    with counted() as objects:
        store.progress.cells("collect")
    assert len(objects.read) > UNITS


def test_asking_for_changes_reads_the_attributes(store: Store) -> None:
    with counted() as objects:
        assert not store.reload_if_changed()
    assert objects.read == ["zarr.json"]


def test_schedule_and_rows_read_each_chunk_once(store: Store) -> None:
    with counted() as objects:
        store.schedule()
    assert sorted(key for key in objects.read if "/c." in key) == [
        f"schedule/{name}/c.0" for name in ("keys", "sigmas", "timesteps")
    ]
    with counted() as objects:
        assert len(store.prompts()) == ROWS
        assert len(store.members(0)) == 2
    assert sorted(key for key in objects.read if "/c." in key) == ["prompts/images/c.0", "prompts/text/c.0"]
