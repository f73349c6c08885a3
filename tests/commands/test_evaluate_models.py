"""The table of an evaluation, and what is missing in it."""

from dataclasses import replace

from nullbooth_cli.commands.evaluate_models import draw_table
from tests.support.evaluations import report


def test_the_table_has_models_side_by_side() -> None:
    drawn, *lines = draw_table(report(["p"], ["models/one", "models/two"], [0.5, 0.25]))
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
