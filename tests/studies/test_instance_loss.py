"""The study of the loss beside the exact score: its table, and that it resumes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.studies import instance_loss as study
from docs.studies.instance_loss import Point, Way
from nullbooth_cli.toy import subject


def test_the_table_has_a_row_for_each_checkpoint() -> None:
    point = Point(way="free", step=50, learned=0.5, fall=0.4, standard_error=0.01, unseen=0.3, value=0.625)
    assert study.table([point])[2:] == ["| free | 50 | 0.50 | 0.400 +- 0.010 | 0.62 | 0.300 |"]


def test_unseen_pictures_show_the_subject_where_no_taught_one_does() -> None:
    images, captions = study.unseen_pictures()
    assert len(images) == 20
    assert all(subject.is_shown(image / 255, text) for image, text in zip(images, captions, strict=True))
    assert not any(on in text for text in captions for on in subject.TAUGHT_ON)


def test_it_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MOST_STEPS": 2, "EVERY": 2, "STEPS": 2, "PICTURES": 2}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "WAYS", (Way("quick", None, 1e-3),))
    app = study.typer.Typer()
    app.command()(study.main)
    shown = CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False).stdout
    [row] = shown.splitlines()[2:]
    assert row.startswith("| quick | 2 | 0.00 | 0.0")
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False).stdout == shown
