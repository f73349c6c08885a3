"""Which streams can be drawn over, and how wide they are."""

import io
from collections.abc import Callable

import pytest

from nullbooth_cli.commands.screen import is_live, rich_console
from tests.support.screen import Screen


@pytest.mark.parametrize(("terminal", "live"), [("xterm", True), ("dumb", False), ("unknown", False), ("", True)])
def test_a_dumb_terminal_cannot_be_drawn_over(screen: Callable[..., Screen], terminal: str, live: bool) -> None:
    assert is_live(screen(80, TERM=terminal)) == live


def test_a_pipe_is_never_live() -> None:
    assert not is_live(io.StringIO())


@pytest.mark.parametrize("stderr", [False, True])
def test_a_terminal_has_its_width_and_a_pipe_no_limit(
    screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch, stderr: bool
) -> None:
    screen(57)
    assert rich_console(stderr=stderr).width == 57
    monkeypatch.setattr("sys.stderr" if stderr else "sys.stdout", io.StringIO())
    assert rich_console(stderr=stderr).width >= 10_000
