"""What a terminal shows at several widths, and what a pipe gets instead."""

import itertools
import json
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.tables import table
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import aligned, duration, rate
from nullbooth_cli.progress import Begin, Event, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth
from tests.support.screen import Screen

LAYER = "up_blocks.1.attentions.1"


def events(seconds: float, clock: list[float]) -> Iterator[Event]:
    """Five units of two stages, each so many seconds of the clock long."""
    yield Note("loading the model, which takes a while and is said in a sentence longer than any narrow terminal is wide")
    yield Begin("collect", 2, 5)
    for stage, first in (("collect", 3), ("covariance", 1)):
        for done in range(first, 6):
            clock[0] += seconds
            yield Progress(stage, done, 5, f"{LAYER}.transformer_blocks.0.attn2.out alpha_0{done}_9e2")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


class TestProgress:
    @pytest.mark.parametrize("width", [40, 60, 80, 120])
    def test_bars_fit(self, screen: Callable[..., Screen], clock: list[float], width: int) -> None:
        def last_frame(num_events: int) -> list[str]:
            shown = screen(width)
            Terminal().follow(itertools.islice(events(12.0, clock), num_events))
            assert max(map(len, shown.plain)) <= width
            return [line.rstrip() for line in shown.plain if line.startswith("co")]

        begun, going, done = (last_frame(n)[-1] for n in (2, 4, 5))
        assert re.match(r"collect .*2/5", begun)
        assert re.match(r"collect .*4/5", going)
        assert "12.0 s/unit" in going
        assert "12 s left" in going
        assert re.match(r"collect .*5/5", done)
        assert "left" not in done
        assert ("━" in done) == (width >= 80)
        if width >= 60:
            assert "up_bl" in going
            assert "the first" in begun
        assert len({line.partition(" ")[0] for line in last_frame(10)}) == 2

    def test_lines_off_a_terminal(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        Terminal().follow(events(12.0, clock))
        lines = capsys.readouterr().err.splitlines()
        assert lines[1].startswith(f"collect 3/5 {LAYER}")
        assert lines[1].endswith("alpha_03_9e2 (12 s, 12.0 s/unit, 24 s left)")
        assert lines[3].endswith("alpha_05_9e2 (36 s, 12.0 s/unit)")
        assert len(lines) == 1 + 3 + 5
        assert "\x1b" not in "".join(lines)

    def test_quick_units_share_a_line(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        def quick() -> Iterator[Event]:
            for done in range(1, 601):
                clock[0] += 0.01
                yield Progress("covariance", done, 600, "a site")

        Terminal().follow(quick())
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 7
        assert lines[-1].startswith("covariance 600/600")

    @pytest.mark.parametrize("name", ["dumb", "unknown"])
    def test_a_dumb_terminal_gets_lines(self, screen: Callable[..., Screen], clock: list[float], name: str) -> None:
        shown = screen(80, TERM=name)
        Terminal().follow(events(12.0, clock))
        assert "\x1b" not in shown.getvalue()
        assert "covariance 5/5" in shown.getvalue()

    def test_no_color(self, screen: Callable[..., Screen], clock: list[float]) -> None:
        """Sequences that move the cursor stay; none sets a colour."""
        colours = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7]|4[0-8])[0-9;]*m")
        coloured = screen(100)
        Terminal().follow(events(12.0, clock))
        Terminal().error(ConfigError("wrong", "right"))
        assert colours.search(coloured.getvalue())
        assert "\x1b[31merror:" in coloured.getvalue()
        plain = screen(100, NO_COLOR="1")
        Terminal().follow(events(12.0, clock))
        Terminal().error(ConfigError("wrong", "right"))
        assert not colours.search(plain.getvalue())
        assert "error: wrong\n\nhint: right\n" in plain.getvalue()


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

    def test_sentences_break_between_words(self, screen: Callable[..., Screen]) -> None:
        shown = screen(30)
        said = "a sentence [in brackets] that is longer than thirty columns are"
        Terminal().answer({}, lambda _: said)
        lines = [line.rstrip() for line in shown.plain]
        assert lines[:3] == ["a sentence [in brackets] that", "is longer than thirty columns", "are"]

    def test_a_pipe_gets_every_column(self, capsys: pytest.CaptureFixture[str]) -> None:
        Terminal().answer({}, lambda _: table(self.columns, self.rows, right=frozenset({1, 2}), drop=("spectrum", "dim")))
        shown = capsys.readouterr().out
        assert shown.splitlines()[0].split() == self.columns
        assert "left out" not in shown

    @given(st.lists(st.floats(1e-9, 1e9) | st.just(0.0), min_size=1, max_size=20))
    def test_aligned_numbers_have_equal_decimals_and_their_values(self, values: list[float]) -> None:
        shown = aligned(values)
        assert len({len(text.partition(".")[2].partition("e")[0]) for text in shown}) == 1
        assert [float(text) for text in shown] == pytest.approx(values, rel=1e-5, abs=5e-7)

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([999.0, 12.0], ["999", "12"]),
            ([999.0, 12.5], ["999.0", "12.5"]),
            ([0.5, 0.99999, None], ["0.50000", "0.99999", ""]),
            ([1e-8, 3e-2], ["1e-08", "3e-02"]),
        ],
    )
    def test_aligned(self, values: list[float | None], shown: list[str]) -> None:
        assert aligned(values) == shown

    def test_rates_are_for_people(self) -> None:
        assert [rate(seconds) for seconds in (0.01, 0.9, 6.5, 300.0)] == [
            "6,000 units/min",
            "67 units/min",
            "6.5 s/unit",
            "300.0 s/unit",
        ]
        assert duration(11_000) == "3 h 3 min"


class TestInspect:
    @pytest.mark.parametrize(("width", "spectrum"), [(60, False), (80, False), (130, True), (180, True)])
    def test_it_fits(self, screen: Callable[..., Screen], finished: tuple[Config, Store], width: int, spectrum: bool) -> None:
        from nullbooth_cli.commands.inspect_store import draw_report
        from nullbooth_cli.report.inspection import inspect_store, sparklines

        config, store = finished
        report = inspect_store(config, store)
        shown = screen(width)
        Terminal().answer(report, lambda found: draw_report(found, sparklines(store, found)))
        lines = shown.plain
        assert max(map(len, lines)) <= width
        assert lines[0].split()[:2] == ["layer", "feature"]
        assert {"null_dim", "leakage"} <= set(lines[0].split())
        assert sum(bool(re.match(r"\S+\.\d +(q|k|out) +\d", line)) for line in lines) == 21, "one line a site"
        assert ("spectrum" in lines[0]) == spectrum
        assert any(line.startswith("layers end in .transformer_blocks.0.attn2") for line in lines)
        assert "down_blocks.0.attentions.0 k protects to_k and to_v of down_blocks.0.attentions.0," in re.sub(
            r"\s+", " ", " ".join(lines)
        )

    def test_pipes_and_json_have_no_spectrum(self, finished: tuple[Config, Store]) -> None:
        piped = nullbooth("inspect", "-s", finished[1].url).stdout
        assert "noise floor" in piped.splitlines()[0]
        assert not set(piped) & set("▁▂▃▄▅▆▇█")
        assert "spectrum" not in json.dumps(json.loads(nullbooth("inspect", "-s", finished[1].url, "--json").stdout))
