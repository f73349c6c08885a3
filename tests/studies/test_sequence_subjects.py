"""The study of one subject after another: its scores are those of the paper, what is remembered is collected, and it resumes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from docs.studies import forgetting, refit, sequence_subjects, sequence_ways
from docs.studies.cuts import collect
from docs.studies.refit_subjects import IN_SEQUENCE
from docs.studies.sequence_report import Played, Point, table
from docs.studies.sequence_subjects import ORDERS, plan
from docs.studies.sequence_ways import WAYS, StoreWithTasks, assembled, bases
from nullbooth_cli.api import OpenStore
from nullbooth_cli.model.trained_files import BASE_FILE, DENOISER_FILE
from nullbooth_cli.model.words import WORD_FILE
from nullbooth_cli.pipeline.remember import RememberRequest, remember_events
from nullbooth_cli.store import Store

TEXT_ONLY = {"collect.collect_features.q_features": False, "collect.collect_features.out_features": False}
WAY = {way.name: way for way in WAYS}


def point(subjects: str, learned: tuple[float, ...], way: str = "free", forgotten: float = 1.0) -> Point:
    return Point(way=way, seed=0, subjects=tuple(subjects.split()), learned=learned, forgotten=forgotten, accuracy=0.5)


def test_average_score_and_forgetting_are_those_of_low_rank_continual_personalization() -> None:
    points = [point("circle", (0.9,)), point("circle square", (0.95, 0.6)), point("circle square ring", (0.2, 0.7, 0.3))]
    played = Played.of(points, WAY["free"], 0, IN_SEQUENCE)  # of four subjects three have been taught
    assert played.average == pytest.approx((0.2 + 0.7 + 0.3) / 3)
    # circle falls from its best, .95, square has its best now, and ring is new.
    assert played.forgetting == pytest.approx((0.75 + 0.0 + 0.0) / 3)
    assert played.first(1).forgetting == 0.0
    rows = table(points, [WAY["free"]], [(0, IN_SEQUENCE)])
    assert rows[-1] == "| free | 3 | 0.40 (0.40 to 0.40) | 0.25 | 0.20 | 0.30 | 1 (1 to 1) | 0.50 | 1 |"


def test_the_order_of_changes_that_are_added_up_does_not_count() -> None:
    circle, square, *_ = IN_SEQUENCE
    way = WAY["LoRAs added up"]
    points = [point("circle", (0.1,), way.name), point("square", (0.2,), way.name), point("circle square", (0.3, 0.4), way.name)]
    assert Played.of(points, way, 0, (square, circle)).learned == ((0.2,), (0.4, 0.3))
    assert Played.of(points, way, 0, (circle, square)).learned == ((0.1,), (0.3, 0.4))


def test_orders_are_balanced_and_a_table_fills_evenly() -> None:
    assert all(sorted(column) == [0, 1, 2, 3] for column in zip(*ORDERS, strict=True))
    assert len({pair for order in ORDERS for pair in itertools.pairwise(order)}) == 12
    sequences = plan([0, 1, 2], 3)
    assert len(set(sequences)) == len(sequences) == 9
    assert all(len(set(column)) == 3 for column in zip(*sequences[:3], strict=True))


def test_what_is_remembered_is_what_the_package_remembers(tmp_path: Path) -> None:
    """The study adds tasks to one store in memory, so that sequences share it: the projectors are those of `remember`."""
    preserved = ["a red circle on a blue background", "a green star on a white background", "a pink ring at the top"]
    taught = ["a sks circle on a black background", "a sks circle on a gray background"]
    changed = refit.fresh()
    changed.text_encoder.get_input_embeddings().weight.data[changed.tokenizer("sks", add_special_tokens=False).input_ids] *= 3
    changed.save_pretrained(tmp_path / "changed")
    collect(tmp_path / "base", preserved, None, TEXT_ONLY)
    collect(tmp_path / "task", taught, None, TEXT_ONLY | {"model": str(tmp_path / "changed")})
    base = OpenStore(Store.open(tmp_path / "base"))
    found = StoreWithTasks(base, [Store.open(tmp_path / "task")], base.config.project.rule()[1])
    assert found.prompts() == (*preserved, *taught)
    before = base.projectors()
    request = RememberRequest(source=str(tmp_path / "changed"), prompts=tuple(taught), name="sks")
    assert list(remember_events(base.config, request, device="cpu"))
    expected = OpenStore(Store.open(tmp_path / "base"))
    [site] = found.sites()
    np.testing.assert_allclose(found.moment(site).second_moment, expected.moment(site).second_moment, rtol=1e-12, atol=1e-15)
    after = expected.projectors()
    assert found.projectors().keys() == after.keys()
    for weight, projector in found.projectors().items():
        assert projector.null_dim == after[weight].null_dim < before[weight].null_dim
        np.testing.assert_allclose(projector.dense(), after[weight].dense(), atol=1e-8)


def test_fixed_bases_are_orthogonal_and_within_the_null_space() -> None:
    null_basis = np.linalg.qr(np.random.default_rng(1).standard_normal((48, 20)))[0]
    columns = np.concatenate([*bases(null_basis, 4).values()], axis=1)
    np.testing.assert_allclose(columns.T @ columns, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(null_basis @ (null_basis.T @ columns), columns, atol=1e-12)


def test_changes_within_fixed_bases_are_added_up(tmp_path: Path) -> None:
    pipe = refit.fresh()
    name, weight = next((name, weight) for name, weight in pipe.unet.named_parameters() if name.endswith("attn2.to_k.weight"))
    rng = np.random.default_rng(0)
    changes = [torch.from_numpy(rng.standard_normal(weight.shape)).float() for _ in range(2)]
    for word, change in zip(("sks", "zwx"), changes, strict=True):
        (tmp_path / word).mkdir()
        save_file({name: weight.data + change}, tmp_path / word / DENOISER_FILE)
        save_file({word: torch.full((1, pipe.text_encoder.config.hidden_size), len(word) / 10)}, tmp_path / word / WORD_FILE)
        (tmp_path / word / BASE_FILE).write_text(json.dumps({"model": "toy", "token": word}))
    added, tokens = assembled(WAY["LoRAs in orthogonal bases, added up"], [tmp_path / "sks", tmp_path / "zwx"])
    assert tokens == ["sks", "zwx"]
    torch.testing.assert_close(added.unet.get_parameter(name).data, weight.data + changes[0] + changes[1])
    replaced, _ = assembled(WAY["free"], [tmp_path / "sks", tmp_path / "zwx"])
    torch.testing.assert_close(replaced.unet.get_parameter(name).data, weight.data + changes[1])


def test_a_sequence_is_taught_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("constrained 1e-4, remembered", "distilled, weight 10")
    monkeypatch.setattr(sequence_subjects, "WAYS", tuple(replace(WAY[name], steps=1) for name in names))
    monkeypatch.setattr(sequence_subjects, "ORDERS", ((1, 0),))
    monkeypatch.setattr(sequence_subjects, "CAPTIONS", 2)
    monkeypatch.setattr(sequence_subjects, "PICTURES", 1)
    monkeypatch.setattr(forgetting, "STEPS", 1)
    monkeypatch.setattr(refit, "STEPS", 1)
    monkeypatch.setattr(sequence_ways, "load_prompts", lambda _: [])  # the empty prompt alone is distilled
    preserved = ["a red circle on a blue background", "a green star on a white background"]
    settings = TEXT_ONLY | {"heldout_prompts": ["a pink ring on a red background"]}
    monkeypatch.setattr(
        sequence_subjects, "cut_projectors", lambda out, _: collect(out / "known.zarr", preserved, None, settings)
    )
    app = sequence_subjects.typer.Typer()
    app.command()(sequence_subjects.main)
    command = [str(tmp_path), "--seed", "4", "--orders", "1"]
    printed = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    points = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json")}
    assert sorted(points) == [f"{name} 4 {subjects}" for name in names for subjects in ("square", "square+circle")]
    first, second = points[f"{names[0]} 4 square"], points[f"{names[0]} 4 square+circle"]
    assert second["null_dim"] == first["left"] < first["null_dim"]
    assert second["left"] < second["null_dim"]
    assert second["ratio"] > 0
    assert second["subjects"] == ["square", "circle"]
    assert len(second["learned"]) == 2
    assert (tmp_path / "sequences-subjects.png").stat().st_size > 10_000
    monkeypatch.setattr(sequence_subjects, "teach", lambda *_, **__: pytest.fail("taught again"))
    assert CliRunner().invoke(app, command, catch_exceptions=False).stdout == printed
    assert CliRunner().invoke(app, [*command, "--table"], catch_exceptions=False).stdout == printed
