"""The study of erasing: it scores what is shown, edits by the word alone, puts the model back, and resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from docs.studies import erase_words
from docs.studies.cuts import collect
from docs.studies.edit_pairs import Scores
from docs.studies.edit_ways import WAYS
from docs.studies.erase_words import Point, measure, table
from nullbooth_cli.store import Store
from nullbooth_cli.toy import world
from tests.support.builders import TEXT_ONLY


def test_shown_rest_and_specificity_are_read_from_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase_words, "PICTURES", 4)

    def paint(_: Any, texts: list[str], **__: Any) -> list[Any]:
        """Every star as a ring, the first background wrong; all else as it is asked for."""
        asked = [world.named(text) for text in texts]
        drawn = [world.Drawing(each["shape"].replace("star", "ring"), each["colour"], each["background"]) for each in asked]
        wrong = next(name for name in ("white", "black") if name != drawn[0].background)
        return [world.draw(drawn[0].__class__(drawn[0].shape, drawn[0].colour, wrong)), *map(world.draw, drawn[1:])]

    monkeypatch.setattr(erase_words.score, "paint", paint)
    assert measure(None, "star") == {"shown": 0.0, "specificity": 0.75, "rest": 0.75}


def test_the_table_names_what_was_erased() -> None:
    point = Point(concept="star", to="circle", way="uce, at once", shown=0.25, specificity=1.0, rest=0.5)
    assert table([point])[2:] == ["| star, to circle | uce, at once | 0.25 | 0.50 | 1.00 |"]


def test_it_edits_by_the_word_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uce = next(way for way in WAYS if way.name == "uce, at once")
    monkeypatch.setattr(erase_words, "AT_ONCE", (uce,))
    monkeypatch.setattr(erase_words, "ERASED", (("star", ""),))
    monkeypatch.setattr(erase_words, "PICTURES", 1)
    monkeypatch.setattr(erase_words, "STEPS", 2)
    preserved = []
    settings = {name.replace("__", "."): value for name, value in TEXT_ONLY.items()}

    def open_texts(place: Path, prompts: list[str]) -> Store:
        preserved.extend(prompts)
        collect(place, prompts[:4], None, settings)
        return Store.open(place)

    monkeypatch.setattr(erase_words, "open_texts", open_texts)
    (tmp_path / "runs").mkdir()
    tried = [{"settings": {"preserve": 10.0, "ridge": 0.01}, **Scores(1.0, 1.0, 1.0, 0.1)._asdict()}]
    (tmp_path / "runs" / "search uce, at once.json").write_text(json.dumps(tried))
    app = erase_words.typer.Typer()
    app.command()(erase_words.main)
    printed = CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False).stdout
    assert preserved
    assert not any("star" in text for text in preserved)
    assert [line.split(" | ")[1] for line in printed.splitlines()[2:]] == ["untouched", "uce, at once"]
    monkeypatch.setattr(erase_words, "run", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False).stdout == printed
