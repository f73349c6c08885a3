"""Terminal: answers on stdout, everything else on stderr; colours only where they are wanted."""

import json
import re
from collections.abc import Callable, Iterator

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.errors import ConfigError, DataError, Rerun
from nullbooth_cli.progress import Begin, Event, Note, Progress
from tests.support.screen import Screen


def events() -> Iterator[Event]:
    """Two units of a stage."""
    yield Note("loading the model")
    yield Begin("collect", 0, 2)
    yield from (Progress("collect", done, 2, "a site") for done in (1, 2))


def test_no_color(screen: Callable[..., Screen]) -> None:
    """Sequences that move the cursor stay; none sets a colour."""
    colours = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7]|4[0-8])[0-9;]*m")
    coloured = screen(100)
    Terminal().follow(events())
    Terminal().error(ConfigError("wrong", "right"))
    assert colours.search(coloured.getvalue())
    assert "\x1b[31merror:" in coloured.getvalue()
    plain = screen(100, NO_COLOR="1")
    Terminal().follow(events())
    Terminal().error(ConfigError("wrong", "right"))
    assert not colours.search(plain.getvalue())
    assert "error: wrong\n\nhint: right\n" in plain.getvalue()


def test_sentences_break_between_words(screen: Callable[..., Screen]) -> None:
    shown = screen(30)
    said = "a sentence [in brackets] that is longer than thirty columns are"
    Terminal().answer({}, lambda _: said)
    lines = [line.rstrip() for line in shown.plain]
    assert lines[:3] == ["a sentence [in brackets] that", "is longer than thirty columns", "are"]


def test_json_is_one_line_for_an_answer_and_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=True)
    terminal.answer({"prompt": "a né"}, lambda _: "not drawn")
    terminal.error(DataError("wrong", Rerun("collect", force=True)))
    terminal.warn(["contained in the document"])
    terminal.next("nullbooth project")
    shown = capsys.readouterr()
    assert shown.out == '{"prompt": "a né"}\n'
    assert json.loads(shown.err) == {"error": "wrong", "hint": "nullbooth collect --force", "exit_code": 7}


def test_quiet_leaves_only_errors(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.follow(events())
    terminal.note("a note")
    terminal.warn(["a warning"])
    terminal.error(ConfigError("wrong", "right\nor left"))
    assert capsys.readouterr().err == "error: wrong\n\nhint: right\n      or left\n"


@pytest.mark.parametrize("hint", [None, "one\ntwo"])
def test_a_verdict_in_a_pipe_is_not_folded(capsys: pytest.CaptureFixture[str], hint: str | None) -> None:
    Terminal().verdict("warning", "store", "word " * 60 + "\nnext", hint=hint, width=6)
    first, second, *below = capsys.readouterr().out.splitlines()
    assert first == f"warning  store   {'word ' * 60}"
    assert second == f"{' ' * 17}next"
    assert below == ([] if hint is None else [f"{' ' * 17}hint: one", f"{' ' * 23}two"])
