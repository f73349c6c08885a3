"""The one style of all pictures: names, pages, formats."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.report.plots import canvas


@given(st.lists(st.integers()), st.integers(1, 5))
def test_pages_share_out_all_items(items: list[int], per_page: int) -> None:
    found = list(canvas.pages(items, per_page))
    assert [item for _, page in found for item in page] == items
    assert all(len(page) <= per_page for _, page in found)
    endings = [ending for ending, _ in found]
    assert endings == ([""] * len(found) if len(items) <= per_page else [f"-{i + 1}" for i in range(len(found))])


def test_a_format_that_cannot_be_drawn() -> None:
    canvas.check_picture("a/b.SVG")
    with pytest.raises(ConfigError, match=r"cannot draw x\.gif"):
        canvas.check_picture("x.gif")


def test_ticks_are_labelled_with_their_own_place() -> None:
    drawn = canvas.axes(canvas.figure(3, 3), "", "")
    canvas.ticks(drawn.xaxis, [str(i) for i in range(25)], 12)
    places = [int(place) for place in drawn.get_xticks()]
    assert [label.get_text() for label in drawn.get_xticklabels()] == [str(place) for place in places]
    assert len(places) <= 12


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (7, 3)])
def test_a_panel_for_each_item(count: int, columns: int) -> None:
    seen: list[int] = []
    made = canvas.panels(list(range(count)), lambda _, item: seen.append(item), title="t", size=(1, 1), x="below", y="left")
    assert seen == list(range(count))
    assert sum(axes.get_xlabel() == "below" for axes in made.axes) == min(count, columns), "only the lowest of each column"
    assert sum(axes.get_ylabel() == "left" for axes in made.axes) == -(-count // columns)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        canvas.save(canvas.figure(1, 1), tmp_path / "file" / "a.png")
