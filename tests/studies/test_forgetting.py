"""The study of forgetting against learning: its cuts are what they say, its table counts right, it goes on where it stopped."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

import nullbooth_cli as nb
from docs.studies import forgetting
from docs.studies.cuts import Cut, Knowledge, worthwhile
from docs.studies.forgetting import Point
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject
from tests.support.builders import execute, small_config


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """(what is kept, with held-out prompts, and the moments of two captions of the subject)."""
    folder = tmp_path_factory.mktemp("known")
    layers = {"collect__cross_attention_layers": ["mid_block*"], "schedule__num_denoising_steps": 2}
    heldout = ["a red ring on a white background", "a blue cross on a black background"]
    config = small_config(folder / "known.zarr", heldout_prompts=heldout, **layers)
    captions = [subject.caption(background) for background in ("white", "black")]
    other = small_config(folder / "subject.zarr", original_knowledge_prompts=captions, **layers)
    one, two = (execute(each, "schedule", "collect", "covariance", "project") for each in (config, other))
    return one, two


def projectors(known: tuple[Store, Store], way: Any, value: float) -> dict[str, nb.Projector]:
    return Knowledge(str(known[0].path), str(known[1].path), Cut(way, value)).projectors()


def test_a_relative_cut_is_that_of_project(known: tuple[Store, Store]) -> None:
    own = nb.open_store(known[0].path).projectors()
    found = projectors(known, "relative", 0.05)
    assert found.keys() == own.keys()
    for weight, projector in own.items():
        np.testing.assert_array_equal(found[weight].dense(), projector.dense())


def test_random_directions_are_as_many_and_others(known: tuple[Store, Store]) -> None:
    own, found = projectors(known, "relative", 0.05), projectors(known, "random", 0.05)
    for weight, projector in own.items():
        assert found[weight].null_dim == projector.null_dim
        p = found[weight].dense()
        np.testing.assert_allclose(p @ p, p, atol=1e-12)
        assert np.abs(p - projector.dense()).max() > 0.1


def test_a_soft_cut_keeps_each_direction_by_its_eigenvalue(known: tuple[Store, Store]) -> None:
    store = known[0]
    found = projectors(known, "soft", 0.05)
    for site in store.sites:
        values, vectors = store.projectors.read_eigenvalues(site, 0), store.projectors.read_eigenvectors(site, 0)
        share = 0.05 / (0.05 + np.maximum(values, 0) / values[-1])
        np.testing.assert_allclose(found[site.weights[0]].dense(), vectors @ np.diag(share) @ vectors.T, atol=1e-12)


def test_a_leakage_cut_bounds_held_out_energy(known: tuple[Store, Store]) -> None:
    heldout = known[0].heldout()
    for weight, projector in projectors(known, "leakage", 0.1).items():
        site = next(site for site in known[0].sites if weight in site.weights)
        sum_xxt = sum(heldout.moments.read_one(site, t)[0] for t in range(site.num_recorded(2)))
        assert np.trace(projector.dense() @ sum_xxt) <= 0.01 * np.trace(sum_xxt) * (1 + 1e-9)


def test_a_subject_cut_looks_at_the_subject(known: tuple[Store, Store]) -> None:
    cheap, dear = projectors(known, "subject", 0.1), projectors(known, "subject", 1e6)
    assert all(cheap[weight].null_dim >= dear[weight].null_dim for weight in cheap)
    assert sum(p.null_dim for p in cheap.values()) > sum(p.null_dim for p in dear.values())


energies = arrays(np.float64, 6, elements=st.floats(0.01, 10))


@given(energies, energies, st.floats(0.01, 100))
def test_what_is_worthwhile_is_the_best_of_all_sizes(wanted: Any, held_out: Any, price: float) -> None:
    worth = [wanted[:k].sum() / wanted.sum() - price * held_out[:k].sum() / held_out.sum() for k in range(7)]
    assert worth[worthwhile(wanted, held_out, price)] == pytest.approx(max(worth), abs=1e-9)


def test_of_equally_learned_checkpoints_the_least_forgotten_counts() -> None:
    def point(seed: int, step: int, learned: float, forgotten: float, arm: str = "one") -> Point:
        return Point(arm, 1e-3, seed, step, learned, forgotten, 0.0, 1.0, None)

    points = [point(0, 50, 0.3, 2.0), point(0, 100, 0.6, 1.0), point(0, 200, 0.2, 0.1), point(1, 50, 0.4, 3.0)]
    assert forgetting.least_forgotten(points, "one", 0, 0.25) == 1.0
    assert math.isnan(forgetting.least_forgotten(points, "one", 1, 0.5))
    row = forgetting.table([*points, point(0, 50, 1.0, 9.0, "two")])[2]
    assert row == "| one | 0.50 (0.40 to 0.60) | 2 (1 to 3) | 1 (1 to 1, 1 of 2 seeds) | - |"


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "CHECKPOINTS", (1, 2))
    monkeypatch.setattr(forgetting, "STEPS", 2)
    app = forgetting.typer.Typer()
    app.command()(forgetting.main)
    command = [str(tmp_path), "--seed", "3", "--only", "word alone"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "| word alone | 0.00 (0.00 to 0.00) | - | - | - |" in result.stdout
    [file] = (tmp_path / "runs").glob("*.json")
    points = [Point(**point) for point in json.loads(file.read_text())]
    assert [(p.arm, p.seed, p.step) for p in points] == [("word alone", 3, 1), ("word alone", 3, 2)]
    # The word is in none of the captions that are scored, and nothing else has moved.
    assert max(p.forgotten for p in points) < 1e-6
    assert (tmp_path / "study.png").stat().st_size > 10_000
    monkeypatch.setattr(forgetting, "run", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, command, catch_exceptions=False).stdout == result.stdout
