"""The command line as a test calls it: in this process, with what it must refuse, and a config file to give it."""

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="nullbooth")


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
