"""The table of `inspect` on a terminal, and what a pipe gets instead."""

import json
import re
from collections.abc import Callable

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth
from tests.support.screen import Screen


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
