"""The study of debiasing names: what is asked for, and what is counted."""

from typing import Any

import pytest

from docs.studies import debias_names
from docs.studies.debias_names import chosen, shares, table
from docs.studies.names_world import names
from nullbooth_cli.toy import world


def test_a_name_is_to_have_its_own_shape_in_two_other_colours() -> None:
    asked = chosen()
    assert len({each.name for each in asked}) == debias_names.NAMES
    for each in asked:
        colour, shape = names()[each.name]
        assert len({colour, each.background, *each.colours}) == 4 or each.background == colour
        assert [world.named(text)["colour"] for text in each.targets] == list(each.colours)
        assert {world.named(text)["shape"] for text in each.targets} == {shape}


def test_what_is_shown_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    [each, *_] = chosen()
    own, shape = names()[each.name]
    [other] = [colour for colour in world.COLOURS if colour not in (*each.colours, own)][:1]
    drawn = [(each.colours[0], shape), (each.colours[0], None), (each.colours[1], shape), (own, shape), (other, shape)]
    monkeypatch.setattr(debias_names, "PICTURES", len(drawn))

    def paint(_: Any, texts: list[str], **__: Any) -> list[world.Reading]:
        assert texts == [each.source] * len(drawn)
        return [world.Reading(found, colour, each.background, 1.0) for colour, found in drawn]

    monkeypatch.setattr(debias_names.score, "paint", paint)
    monkeypatch.setattr(world, "read", lambda picture: picture)
    found = shares(None, each)
    assert found == {"first": 0.4, "second": 0.2, "uneven": 0.2, "own": 0.2, "other": 0.2, "shape": 0.8}
    assert table([("uce, at once", 8, found)])[2:] == ["| uce, at once | 8 | 0.40 | 0.20 | 0.20 | 0.20 | 0.20 | 0.80 |"]
