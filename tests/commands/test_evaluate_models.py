"""The table of an evaluation, and what is missing in it."""

from dataclasses import replace
from pathlib import Path

import pytest

from nullbooth_cli.commands.evaluate_models import _with_store, draw_table
from nullbooth_cli.commands.options import Common
from nullbooth_cli.evaluation.verdict import edited
from tests.support.evaluations import edit_scores, report


def test_the_table_has_models_side_by_side() -> None:
    parts = draw_table(report(["p"], ["models/one", "models/two"], [0.5, 0.25]))
    [drawn] = [part for part in parts if not isinstance(part, str)]
    lines = parts[parts.index(drawn) + 1 :]
    assert [str(column.header) for column in drawn.columns] == ["prompts", "quantity", "another seed", "one", "two"]
    assert sum("drift by at most" in line for line in lines) == 2
    cells = [list(column.cells) for column in drawn.columns]
    rows = [[str(cell) for cell in row] for row in zip(*cells, strict=True)]
    assert ["preserved", "latent MSE", "2", "0.5", "0.25"] in rows
    assert rows.count([""] * 5) == 1, "a blank line between the two sets"


def test_what_is_missing_is_named_with_its_option() -> None:
    missing = {"clip": "no CLIP weights", "subject": "no prompt of a subject was given", "lpips": "not installed"}
    *_, clip, subject, lpips = draw_table(replace(report(["p"], ["one"], [0.5]), not_measured=missing))
    assert clip == "not measured: clip: no CLIP weights; give it with --features clip=FOLDER"
    assert subject.endswith("name one with --subject or --subject-prompts")
    assert lpips == "not measured: lpips: not installed"


def test_the_verdicts_come_first_with_their_advice() -> None:
    learned, advice, forgotten, other, *_ = draw_table(report(["p"], ["one"], [0.5]))
    assert learned == "learned 0.50 of 1: partly (exact scorer; base 0.00)"
    assert advice.startswith("  train for more steps")
    assert forgotten == "forgotten 0.25: a little (latent MSE on preserved prompts; 1 is another seed)"
    assert other.startswith("  take an earlier checkpoint")
    good = draw_table(report(["p"], ["one"], [0.1]))
    assert good[2:4] == ["forgotten 0.05: hardly anything (latent MSE on preserved prompts; 1 is another seed)", ""]


def test_the_scores_of_an_edit() -> None:
    scores = edit_scores({"a": "b"}, 0.94)
    first = report(["p"], ["one"], [0.5])
    verdicts = (edited("efficacy", 0.94, 0.0, "exact scorer"), edited("specificity", 0.5, 0.98, "exact scorer"))
    line, second, advice, *parts = draw_table(replace(first, edit=scores, verdicts=verdicts))
    assert line == "efficacy 0.94 of 1: high (exact scorer; base 0.00)"
    assert (second, advice[:23]) == ("specificity 0.50 of 1: low (exact scorer; base 0.98)", "  edit with a larger ri")
    [drawn] = [part for part in parts if not isinstance(part, str)]
    rows = [[str(cell) for cell in row] for row in zip(*(list(column.cells) for column in drawn.columns), strict=True)]
    assert rows[1] == ["edited", "draw a target (base 0.125, targets 1)", "", "0.94"]


def test_a_base_whose_inputs_are_not_known_has_no_drift() -> None:
    lines = [part for part in draw_table(replace(report(["p"], ["one"], [0.5]), drift=None)) if isinstance(part, str)]
    assert not [line for line in lines if "drift by at most" in line]


def test_the_verdicts_on_several_models_have_their_names() -> None:
    lines = [part for part in draw_table(report(["p"], ["models/one", "models/two"], [1.0, 0.5])) if isinstance(part, str)]
    assert lines[0].startswith("one: learned 1.00 of 1: well")
    assert "two: forgotten 0.25: a little (latent MSE on preserved prompts; 1 is another seed)" in lines


def test_the_store_of_the_run_where_nothing_else_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/train.json").write_text('{"recipe": {"store": "words.zarr"}}')
    assert _with_store(Common(), "out").store == "words.zarr"
    assert _with_store(Common(store="other.zarr"), "out").store == "other.zarr"
    assert _with_store(Common(config="other.yaml"), "out").store is None
    assert _with_store(Common(), "toy").store is None
    Path("edited").mkdir()
    Path("edited/edit.json").write_text('{"pairs": {"a": "b"}, "store": {"url": "toy.zarr"}}')
    assert _with_store(Common(), "edited").store == "toy.zarr"
    Path("nullbooth.yaml").touch()
    assert _with_store(Common(), "out").store is None
