"""The command line as a test calls it: in this process or in one of its own, what it must refuse, a config file to give it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="nullbooth")


class _Child(subprocess.Popen[str]):
    """A process that ends with its `with` block if the block fails, a time limit included."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error:
            self.kill()
        super().__exit__(kind, error, trace)


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that Ctrl-C stops, also where the tests themselves ignore it: in a background job of a script.

    Every test that sends SIGINT needs this. A process inherits what its parent ignores, and would then never end.
    """
    here = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _Child(command, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, here)


def start_nullbooth(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return start([sys.executable, "-m", "nullbooth_cli", *arguments], **options)


def refused(result: Result, exit_code: int, *words: str) -> None:
    """The command gave this exit code, `error:` and `hint:` on stderr with these words, nothing on stdout, no traceback."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert re.match(r"(?s).*error: .+\n\nhint: .+", result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def saved(config: Config, path: Path) -> list[str]:
    """Write the config to a file; returns the arguments that name it."""
    path.write_text(yaml.safe_dump(config.model_dump()))
    return ["-c", str(path)]


def exported(*arguments: str) -> dict[str, Any]:
    """The document of `nullbooth export`."""
    result = nullbooth("export", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found
