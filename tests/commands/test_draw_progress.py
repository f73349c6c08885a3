"""Progress: bars on a terminal of any width, and lines elsewhere."""

import itertools
import re
from collections.abc import Callable, Iterator

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.progress import Begin, Event, Note, Progress
from tests.support.screen import Screen

LAYER = "up_blocks.1.attentions.1"


def events(seconds: float, clock: list[float]) -> Iterator[Event]:
    """Five units of two stages, each `seconds` long on the clock."""
    yield Note("loading the model, which takes a while and is said in a sentence longer than any narrow terminal is wide")
    yield Begin("collect", 2, 5)
    for stage, first in (("collect", 3), ("covariance", 1)):
        for done in range(first, 6):
            clock[0] += seconds
            yield Progress(stage, done, 5, f"{LAYER}.transformer_blocks.0.attn2.out alpha_0{done}_9e2")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_bars_fit(screen: Callable[..., Screen], clock: list[float], width: int) -> None:
    def last_frame(num_events: int) -> list[str]:
        shown = screen(width)
        Terminal().follow(itertools.islice(events(12.0, clock), num_events))
        assert max(map(len, shown.plain)) <= width
        return [line.rstrip() for line in shown.plain if line.startswith("co")]

    started, going, done = (last_frame(n)[-1] for n in (2, 4, 5))
    assert re.match(r"collect .*2/5", started)
    assert re.match(r"collect .*4/5", going)
    assert "12.0 s/unit" in going
    assert "12 s left" in going
    assert re.match(r"collect .*5/5", done)
    assert "left" not in done
    assert ("━" in done) == (width >= 80)
    if width >= 60:
        assert "up_bl" in going
        assert "the first" in started
    assert len({line.partition(" ")[0] for line in last_frame(10)}) == 2


def test_lines_off_a_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().follow(events(12.0, clock))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith(f"collect 3/5 {LAYER}")
    assert lines[1].endswith("alpha_03_9e2 (12 s, 12.0 s/unit, 24 s left)")
    assert lines[3].endswith("alpha_05_9e2 (36 s, 12.0 s/unit)")
    assert len(lines) == 1 + 3 + 5
    assert "\x1b" not in "".join(lines)


def test_quick_units_share_a_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def quick() -> Iterator[Event]:
        for done in range(1, 601):
            clock[0] += 0.01
            yield Progress("covariance", done, 600, "a site")

    Terminal().follow(quick())
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first.startswith("covariance 1/600 a site")
    assert [re.match(r"covariance (\d)\d+/600", line)[1] for line in between] == ["5"], "one in five seconds"  # type: ignore[index]
    assert last.startswith("covariance 600/600")


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_lines(screen: Callable[..., Screen], clock: list[float], name: str) -> None:
    shown = screen(80, TERM=name)
    Terminal().follow(events(12.0, clock))
    assert "\x1b" not in shown.getvalue()
    assert "covariance 5/5" in shown.getvalue()
