"""The answers of `nullbooth doctor`, as lines and as JSON."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.commands import console
from nullbooth_cli.settings.config import Config
from tests.support.builders import execute
from tests.support.doctor import little


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="nullbooth")


def written(config: Config, folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return str(folder / "c.yaml")


@pytest.fixture
def begun(tmp_path: Path) -> Config:
    """A run whose first of two units is collected."""
    config = little(tmp_path / "run.zarr")
    execute(config, "schedule", "collect", limit=1)
    return config


class TestAnswers:
    def test_lines_are_aligned_and_plain_in_a_pipe(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", heldout_prompts=["gold " * 30])
        result = nullbooth("-c", written(config, tmp_path), "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        *lines, empty, summary = result.stdout.splitlines()
        assert (empty, summary) == ("", "20 checks, 0 errors, 1 warning, 0 not checked: the run can start")
        assert all(re.match(r"(ok |warning|error) {2,6}\S.{15}  \S| {27}hint: ", line) for line in lines)
        assert "\x1b" not in result.stdout
        assert result.stderr == f"next: nullbooth run -c {tmp_path / 'c.yaml'}\n"

    def test_the_store_alone_is_enough(self, begun: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(Path(begun.store).parent)
        result = nullbooth("-s", begun.store, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.stdout
        document = json.loads(result.stdout)
        assert document["verdict"] == "ok"
        assert set(document["checks"][0]) == {"check", "verdict", "text", "hint", "checked"}
        assert document["checks"][2]["text"] == "8 prompts in the store"

    def test_on_a_terminal_it_is_coloured_and_folds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Screen(io.StringIO):
            def isatty(self) -> bool:
                return True

        def shown() -> str:
            screen = Screen()
            monkeypatch.setattr(sys, "stdout", screen)
            console.Terminal().verdict("error", "store", "word " * 20 + "\n  inner", hint="one\ntwo", width=6)
            monkeypatch.undo()
            return screen.getvalue()

        for name, value in {"TERM": "xterm", "COLUMNS": "60"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        lines = shown().splitlines()
        assert lines[0].startswith("\x1b[31merror\x1b[0m    store   word word")
        assert [line[17:] for line in lines[3:]] == ["  inner", "hint: one", "      two"]
        assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 60 for line in lines)
        for name, value in {"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        assert "\x1b" not in shown()
