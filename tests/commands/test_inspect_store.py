"""The table of `inspect` on a terminal, and what a pipe gets instead."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.inspect_store import draw_report
from nullbooth_cli.report.inspection import inspect_store, sparklines
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth
from tests.support.screen import Screen

LEAKS = [
    (0.01, 0.03, ["preserves: leaks 0.03: good (of held-out prompts' inputs at most, in the worst site; up to 0.1 is good)"]),
    (
        0.01,
        0.2,
        [
            "preserves: leaks 0.2: leaks too much (of held-out prompts' inputs at most, in the worst site; up to 0.1 is good)",
            "  choose a smaller threshold",
        ],
    ),
    (
        0.01,
        None,
        [
            "preserves: leaks 0.01: good (of the collected prompts' inputs at most, in the worst site; up to 0.1 is good)",
            "  measure prompts that were not collected: set heldout_prompts",
        ],
    ),
]


class TestInspect:
    @pytest.mark.parametrize(("width", "spectrum"), [(60, False), (80, False), (130, True), (180, True)])
    def test_it_fits(self, screen: Callable[..., Screen], finished: tuple[Config, Store], width: int, spectrum: bool) -> None:
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

    @pytest.mark.parametrize(("leakage", "heldout", "ends"), LEAKS)
    def test_the_last_lines_say_whether_it_preserves(
        self, finished: tuple[Config, Store], leakage: float, heldout: float | None, ends: list[str]
    ) -> None:
        report = inspect_store(*finished)
        totals = replace(report.totals, largest_leakage=leakage, largest_heldout_leakage=heldout)
        assert draw_report(replace(report, totals=totals))[-len(ends) :] == ends
