"""Tables: on terminals of several widths, and in a pipe."""

import re
from collections.abc import Callable

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.tables import table
from tests.support.screen import Screen

LAYER = "up_blocks.1.attentions.1"


class TestTables:
    columns = ["layer", "dim", "leakage", "spectrum"]
    rows = [[LAYER, "80", "7.14e-02", "█▇▆▅▄▃▂▁|"], ["mid_block", "1280", "2.39e-02", "█▇▆▅▄▃▂▁|"]]

    def drawn(self, screen: Callable[..., Screen], width: int) -> list[str]:
        shown = screen(width)
        drop = ("spectrum", "dim")
        Terminal().answer({}, lambda _: table(self.columns, self.rows, right=frozenset({1, 2}), drop=drop))
        return shown.plain

    @pytest.mark.parametrize(
        ("width", "left_out"), [(60, []), (50, ["spectrum"]), (38, ["spectrum", "dim"]), (30, ["spectrum", "dim"])]
    )
    def test_columns_are_left_out_in_order_and_named(
        self, screen: Callable[..., Screen], width: int, left_out: list[str]
    ) -> None:
        lines = self.drawn(screen, width)
        assert max(map(len, lines)) <= width
        assert lines[0].split() == [column for column in self.columns if column not in left_out]
        named = re.search(r"left out at this width: ([^:]*)", " ".join(lines))
        assert (re.split(r",\s+", named[1].strip()) if named else []) == left_out
        if width >= 38:
            assert any(line.startswith(f"{LAYER} ") for line in lines), "names are whole"

    def test_numbers_end_under_each_other(self, screen: Callable[..., Screen]) -> None:
        lines = self.drawn(screen, 60)
        ends = {re.search(r"^\S+ +(\d+)", line).end(1) for line in lines if re.match(r"(up|mid)_", line)}  # type: ignore[union-attr]  # there are
        assert len(ends) == 1

    def test_a_pipe_gets_every_column(self, capsys: pytest.CaptureFixture[str]) -> None:
        Terminal().answer({}, lambda _: table(self.columns, self.rows, right=frozenset({1, 2}), drop=("spectrum", "dim")))
        shown = capsys.readouterr().out
        assert shown.splitlines()[0].split() == self.columns
        assert "left out" not in shown
