"""A terminal of any width, for the tests of what commands draw."""

from collections.abc import Callable

import pytest

from tests.support.screen import Screen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """A terminal of a width, for stdout and stderr; `environment` on top."""

    def make(width: int, **environment: str) -> Screen:
        there = Screen()
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"COLUMNS": str(width), "TERM": "xterm-256color", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout", there)
        monkeypatch.setattr("sys.stderr", there)
        return there

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now
