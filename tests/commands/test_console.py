"""Terminal: answers on stdout, everything else on stderr; colours only where they are wanted."""

import json
import re
from collections.abc import Callable, Iterator

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.tables import table
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


NASTY = "\x1b[2J\x9b31m\u202e\r\x08[red]x[/red]\ud800 né \u2028"
HARMLESS = "\\u001b[2J\\u009b31m\\u202e\\r\\b[red]x[/red]\\ud800 né \\u2028"


def everything_shown(terminal: Terminal) -> None:
    """A nasty text in every place of a command's output."""

    def nasty_events() -> Iterator[Event]:
        yield Note(NASTY)
        yield Begin("collect", 0, 1)
        yield Progress("collect", 1, 1, NASTY)

    terminal.follow(nasty_events())
    terminal.answer({NASTY: NASTY}, lambda _: [NASTY, table([NASTY, "b"], [[NASTY, "1"]])])
    terminal.watch([{NASTY: 1}], lambda _: [NASTY, table([NASTY], [[NASTY]])], lambda _: NASTY, lambda _: 1)
    terminal.text(NASTY)
    terminal.note(NASTY)
    terminal.warn([NASTY])
    terminal.next(NASTY)
    terminal.error(ConfigError(NASTY, NASTY))
    terminal.verdict("ok", NASTY, NASTY, hint=NASTY, width=6)


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_is_shown_steers_a_terminal(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    everything_shown(Terminal(as_json=as_json))
    shown = capsys.readouterr()
    assert not [c for c in shown.out + shown.err if c != "\n" and not c.isprintable()]
    assert HARMLESS in shown.out
    assert HARMLESS in shown.err
    if as_json:
        assert json.loads(shown.out.split("\n")[0]) == {NASTY: NASTY}
        assert json.loads(shown.err.split("\n")[-2])["error"] == NASTY


def test_nothing_that_is_drawn_steers_a_terminal(screen: Callable[..., Screen]) -> None:
    """Rich draws with sequences of its own; of the text's none is left, and its markup is text."""
    shown = screen(200)
    everything_shown(Terminal())
    drawn = shown.getvalue()
    assert "\x1b[2J" not in drawn
    assert not set(drawn) & set("\x9b\u202e\x08\u2028\ud800")
    assert HARMLESS.partition("\\r")[0] in " ".join(shown.plain)
    assert "[red]x[/red]" in drawn


def test_rows_of_a_table_are_equally_wide_whatever_is_in_them(screen: Callable[..., Screen]) -> None:
    shown = screen(100)
    Terminal().answer({}, lambda _: table(["a", "b"], [["x\x1by", "1"], ["xy", "1"]], right=frozenset({1})))
    rows = [line.rstrip() for line in shown.plain if line.rstrip().endswith("1")]
    assert len({len(row) for row in rows}) == 1
