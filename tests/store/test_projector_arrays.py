"""Decompositions and cuts come back as they were written, each index by itself."""

import numpy as np
import pytest

from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store import Cut, Decomposition, Store
from tests.support.stores import FREE, TIMED


def decomposition(seed: int, dim: int) -> Decomposition:
    draw = np.random.default_rng(seed)
    return Decomposition(
        eigenvalues=np.sort(draw.random(dim)),
        eigenvectors=draw.random((dim, dim)),
        energies=draw.random((2, dim)),
        noise_floor=seed / 7,
    )


@pytest.fixture
def made(store: Store) -> Store:
    store.projectors.create((FREE, TIMED), {FREE.name: 1, TIMED.name: 3})
    return store


def test_room_and_progress_are_made_for_every_decomposition(made: Store) -> None:
    assert [made.projectors.num_decompositions(site) for site in (FREE, TIMED)] == [1, 3]
    assert made.progress.cells("decomposition").tolist() == [0] * 4


def test_every_decomposition_comes_back(made: Store) -> None:
    for index in (2, 0, 1):
        made.projectors.write_decomposition(TIMED, index, decomposition(index, TIMED.dim))
    for index in range(3):
        found, expected = made.projectors.read_decomposition(TIMED, index), decomposition(index, TIMED.dim)
        assert found.noise_floor == expected.noise_floor
        for name in ("eigenvalues", "eigenvectors", "energies"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("cut", [Cut(2, 1e-6, None), Cut(0, 0.0, 0.25)])
def test_a_cut_comes_back_with_or_without_held_out_leakage(made: Store, cut: Cut) -> None:
    made.projectors.write_cut(FREE, 0, cut)
    assert made.projectors.read_cut(FREE, 0) == cut


def test_a_decomposition_that_was_never_written_is_an_error(made: Store) -> None:
    with pytest.raises(
        StoreError, match=r"projectors/mid\.attn2\.q/eigenvalues chunk c\.1\.0 is damaged: it is missing"
    ) as caught:
        made.projectors.read_decomposition(TIMED, 1)
    assert caught.value.rerun == Rerun("project", force=True, store=made.url)
