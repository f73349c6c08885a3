"""The study of many edits: its edits mean what they say, hard ones shrink the null space, and it resumes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from docs.studies import edit_pairs, edit_tables, forgetting, sequence_edits
from docs.studies.cuts import collect
from docs.studies.edit_pairs import MOST, SEARCH_SEED, Scores, ToyWorld, edits, in_order
from docs.studies.edit_tables import Point, Room, best_of, room_table, settings_of, table
from docs.studies.edit_ways import OF_BALANCE, WAYS, Bench, Preserved, Way
from docs.studies.sequence_edits import SEEDS, WORLDS, plan
from nullbooth_cli.nullspace.pooling import pooled
from nullbooth_cli.store import Store
from nullbooth_cli.toy import world
from tests.support.builders import PROMPTS, TEXT_ONLY, execute, small_config


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The texts of eight preserved prompts."""
    config = small_config(tmp_path_factory.mktemp("texts") / "texts.zarr", collect__keep="moments", **TEXT_ONLY)
    return execute(config, "schedule", "collect", "covariance", "project")


def test_39_edits_give_each_of_13_words_one_colour() -> None:
    made = edits(0)
    assert len({each.source for each in made}) == MOST == 39
    assert len({(each.word, each.colour) for each in made}) == len({each.word for each in made}) == 13
    assert not {each.word for each in made} & (set(world.WORDS) - set(world.RESERVED_WORDS))
    assert all(
        world.named(each.target) == {"shape": each.shape, "colour": each.colour, "background": each.background} for each in made
    )
    assert edits(0) == made != edits(1)
    assert not {each.word for each in edits(SEARCH_SEED, reserved=False)} & {each.word for seed in SEEDS for each in edits(seed)}
    turned = in_order(made, 2)
    assert turned != made
    assert set(turned) == set(made)


def test_a_paraphrase_has_the_word_and_shape_on_another_background() -> None:
    for number, each in enumerate(edits(1)):
        text, (shape, colour, background) = each.paraphrase(number)
        assert world.named(text) == {"shape": shape, "background": background}
        assert f"{each.word} {shape}" in text
        assert (shape, colour) == (each.shape, each.colour)
        assert background not in (each.background, each.colour)


def test_a_store_under_its_own_threshold_is_the_store(texts: Store) -> None:
    [site] = texts.sites
    found = Preserved(texts, 0.05)
    assert found.config.project.rule() == ("relative_threshold", 0.05)
    sums = pooled(texts, site)
    values, vectors = np.linalg.eigh(sums.sum_xxt / sums.count)
    null = vectors[:, values < 0.05 * values[-1]]
    np.testing.assert_allclose(found.projector(site).dense(), null @ null.T, atol=1e-9)
    assert found.projectors().keys() == set(site.weights)


def test_hard_edits_count_as_preserved_tokens(texts: Store, pipe: Any) -> None:
    [site], bench = texts.sites, Bench(pipe, texts)
    asked = bench.rows(edits(0)[:3])
    rows = np.concatenate([each.keys for each in asked])
    before, after = Preserved(texts, 1e-3), Preserved(texts, 1e-3, [{site.name: each.keys} for each in asked])
    sums = pooled(texts, site)
    moment = (sums.sum_xxt + rows.T @ rows) / (sums.count + len(rows))
    np.testing.assert_allclose(after.moment(site).second_moment, moment, atol=1e-9)
    values, vectors = np.linalg.eigh(moment)
    null = vectors[:, values < 1e-3 * values[-1]]
    np.testing.assert_allclose(after.projector(site).dense(), null @ null.T, atol=1e-9)
    assert after.projector(site).null_dim < before.projector(site).null_dim


def played(bench: Bench, name: str, counts: tuple[int, ...]) -> list[tuple[Any, float, torch.Tensor]]:
    """(what was made, what is missing of all its edits, a weight) after each count; the model is put back."""
    way, made = next(way for way in WAYS if way.name == name), edits(0)
    asked, found = bench.rows(made[: max(counts)]), []
    for now in bench.play(way, {axis: values[1] for axis, values in way.axes.items()}, made, counts):
        changed = now.reports[-1].weights
        weight = bench.pipe.unet.get_parameter(next(iter(changed))).detach().clone()
        found.append((now, bench.missing(asked[: now.count], changed), weight))
    bench.reset()
    return found


def test_edits_one_by_one_have_less_missing_with_c_than_without(texts: Store, pipe: Any) -> None:
    bench = Bench(pipe, texts)
    once, soft, nothing = (
        played(bench, f"alphaedit, {how}", (1, 4)) for how in ("at once", "one by one, with C", "one by one, without C")
    )
    for way in (once, soft, nothing):
        now, missing, weight = way[0]
        assert now.count == 1
        each = [found.missing for found in now.reports[0].weights.values()]
        assert min(each) <= missing <= max(each)
        torch.testing.assert_close(weight, once[0][2])
    assert [len(way[1][0].reports) for way in (once, soft, nothing)] == [1, 4, 4]
    assert once[1][1] < soft[1][1] < nothing[1][1]


def test_the_best_of_a_search_is_highest_in_the_mean_and_then_nearest(tmp_path: Path) -> None:
    assert Scores(0.5, 0.5, 0.25, 9.0).overall == pytest.approx(3 / 8)
    assert Scores(1.0, 0.0, 1.0, 0.0).overall == 0.0
    assert Scores(0.5, 0.5, 1.0, 9.0, preserved_names=0.5, other_names=0.0).overall == pytest.approx(0.5)
    tried = [
        {"settings": {"ridge": i}, **Scores(*scores)._asdict()}
        for i, scores in enumerate([(1.0, 0.1, 0.1, 0.0), (0.5, 0.5, 0.5, 0.2), (0.5, 0.5, 0.5, 0.1), (0.0, 1.0, 1.0, 0.0)])
    ]
    (tmp_path / "runs").mkdir()
    hard = next(way for way in WAYS if way.after == "hard")
    (tmp_path / "runs" / f"search {hard.like}.json").write_text(json.dumps(tried))
    assert settings_of(hard, tmp_path) == {"ridge": 2}


def test_every_searched_way_has_four_values_of_two_numbers() -> None:
    assert all([len(values) for values in way.axes.values()] == [4, 4] for way in WAYS)
    assert all(way.like in {other.name for other in WAYS if other.like is None} for way in WAYS if way.like)


def test_the_tables_have_means_over_the_runs() -> None:
    def point(seed: int, efficacy: float, distance: float) -> Point:
        return Point(
            way="uce, at once",
            seed=seed,
            order=0,
            count=5,
            efficacy=efficacy,
            generalisation=0.25,
            specificity=1.0,
            distance=distance,
            missing=0.5,
        )

    [row] = table([point(0, 0.5, 4.0), point(1, 1.0, 1.0)])[2:]
    assert row == ("| uce, at once | 5 | 0.75 (0.50 to 1.00) | 0.25 (0.25 to 0.25) | 1.00 (1.00 to 1.00) | 2 | 0.50 | 2 |")
    [head, _, row] = table([replace(point(0, 0.5, 4.0), preserved_names=0.75, other_names=0.25)])
    assert "specificity | preserved names | other names | distance" in head
    assert "| 1.00 (1.00 to 1.00) | 0.75 (0.75 to 0.75) | 0.25 (0.25 to 0.25) | 4 |" in row
    rooms = [Room(seed=i, threshold=1e-3, count=10, rank=2.0, null_dim=68, left=66 + i, energy=0.5) for i in (0, 1)]
    assert room_table(rooms)[2:] == ["| 0.001 | 10 | 2.0 | 68 | 66.5 | 0.50 |"]


def test_a_plan_has_all_orders_and_begins_with_one_for_each_seed() -> None:
    found = plan((0, 1, 2), 3)
    assert found[:3] == [(0, 0), (1, 1), (2, 2)]
    assert len(set(found)) == len(found) == 9


def test_it_searches_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Way(name="quick", method="uce", after="soft", axes={name: values[:2] for name, values in OF_BALANCE.items()})
    for module in (sequence_edits, edit_tables):
        monkeypatch.setattr(module, "WAYS", (quick,))
        monkeypatch.setattr(module, "COUNTS", (1, 2))
    monkeypatch.setitem(WORLDS, "toy", SmallWorld())
    monkeypatch.setattr(sequence_edits, "open_texts", small_texts)
    for name, value in (("PICTURES", 2), ("SEARCH_PICTURES", 2), ("STEPS", 8)):
        monkeypatch.setattr(edit_pairs, name, value)
    monkeypatch.setattr(forgetting, "STEPS", 2)
    app = sequence_edits.typer.Typer()
    app.command()(sequence_edits.main)
    command = [str(tmp_path), "--seed", "4", "--orders", "1"]
    printed = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    points = json.loads((tmp_path / "runs" / "quick 4 0.json").read_text())
    assert [point["count"] for point in points] == [1, 2]
    assert 0 < points[0]["missing"] < 1
    assert points[0]["distance"] > 0
    [untouched] = json.loads((tmp_path / "runs" / "untouched 4.json").read_text())
    assert untouched["distance"] == 0
    assert (untouched["preserved_names"], untouched["other_names"]) == (1.0, 0.0)
    assert {path.name for path in tmp_path.glob("*.zarr")} == {"texts4.zarr", f"texts{SEARCH_SEED}.zarr"}
    tried = json.loads((tmp_path / "runs" / "search quick.json").read_text())
    assert len(tried) == 3  # two values of preserve at the first ridge, then the other ridge
    assert sorted(best_of(tried)) == ["preserve", "ridge"]
    assert printed.count("| quick |") == 3  # two rows of scores, and what the search found
    assert (tmp_path / "sequences-edits.png").stat().st_size > 10_000
    monkeypatch.setattr(Bench, "play", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, command, catch_exceptions=False).stdout == printed


class SmallWorld(ToyWorld):
    """Two edits, and one in a search; a store for each seed, and names."""

    thresholds, searched_at = (1e-3,), 1

    def edits(self, seed: int) -> list[edit_pairs.Edit]:
        """The first two."""
        return super().edits(seed)[:2]

    def store(self, seed: int) -> str:
        """One for each seed."""
        return f"texts{seed}.zarr"

    def names(self, seed: int) -> dict[str, list[edit_pairs.Caption]]:
        """A caption that is right, and one that is not."""
        text = "a red circle on a blue background"
        return {"preserved": [(text, ("circle", "red", "blue"))], "other": [(text, ("circle", "red", "green"))]}


def small_texts(place: Path, _: object, model: str) -> Store:
    """The texts of eight preserved prompts, as `open_texts` collects those of all."""
    assert model == "toy"
    collect(place, PROMPTS, None, {name.replace("__", "."): value for name, value in TEXT_ONLY.items()})
    return Store.open(place)
