"""The app itself: its help, what it imports, its entry points."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from nullbooth_cli.cli import Boundary, app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth

HEAVY = {"torch", "diffusers", "transformers", "accelerate"}
# An app of one command, run as ours is: what Typer itself costs on this machine.
BARE = "import sys, time, typer; app = typer.Typer(rich_markup_mode=None); app.command()(lambda: None)"
OURS = "import sys, time; from nullbooth_cli.cli import app"
HELP = "; from typer.testing import CliRunner; assert CliRunner().invoke(app, ['--help']).exit_code == 0; "


def answer_of(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True)


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_every_command_has_help_an_example_and_shared_options(command: str) -> None:
    shown = nullbooth(command, "--help").stdout
    assert f"Example: nullbooth {command}" in shown
    # A merge takes its config from the stores, and a sample takes none; init and teach write what the others read.
    of_config = () if command in ("merge", "import", "init", "teach", "sample") else ("--config", "--verbose")
    of_store = {"init": (), "teach": ("--set",), "sample": ("--set",)}.get(command, ("--store", "--set"))
    for option in (*of_store, "--json", "--quiet", *of_config):
        assert option in shown


def test_help_takes_at_most_three_times_the_cpu_time_of_typer() -> None:
    seconds = [min(float(answer_of(f"{run}{HELP}print(time.process_time())")) for _ in range(3)) for run in (OURS, BARE)]
    assert seconds[0] < 3 * seconds[1]


def test_help_imports_few_modules_and_none_that_is_heavy() -> None:
    ours, bare = (set(answer_of(f"{run}{HELP}print(*sys.modules)").split()) for run in (OURS, BARE))
    assert not ours & {*HEAVY, "zarr", "numpy", "pydantic", "rich"}
    assert len(ours - bare) < 60, sorted(ours - bare)


def test_the_help_fits_a_screen() -> None:
    assert len(nullbooth("--help").stdout.splitlines()) <= 35


def completed(shell: str, **variables: str) -> tuple[str, set[str]]:
    """What the completion of a shell answers, and the modules that it imports."""
    code = f"{OURS}; import atexit; atexit.register(lambda: print('\\n' + ' '.join(sys.modules))); app(prog_name='nullbooth')"
    environment = {**os.environ, "_NULLBOOTH_COMPLETE": shell, **variables}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stderr == ""
    text, _, modules = answer.stdout.rstrip("\n").rpartition("\n")
    return text.strip(), set(modules.split())


def test_shells_complete_commands_options_and_files() -> None:
    for shell, line in (("bash", "complete -o default -F _nullbooth_completion nullbooth"), ("zsh", "#compdef nullbooth")):
        script = completed(f"source_{shell}")[0].splitlines()
        assert line in script
        assert any(f"_NULLBOOTH_COMPLETE=complete_{shell}" in each for each in script)
    found, modules = completed("complete_bash", COMP_WORDS="nullbooth in", COMP_CWORD="1")
    assert found.split() == ["init", "inspect"]
    assert not modules & {*HEAVY, "zarr", "numpy", "rich"}  # Typer itself reads the line with pydantic
    assert completed("complete_bash", COMP_WORDS="nullbooth run --d", COMP_CWORD="2")[0].split() == ["--device", "--dry-run"]
    # Without an answer bash completes the names of files, and zsh is told to.
    assert completed("complete_bash", COMP_WORDS="nullbooth run -c nu", COMP_CWORD="3")[0] == ""
    assert completed("complete_zsh", _TYPER_COMPLETE_ARGS="nullbooth run -c nu")[0] == "_files"


@pytest.mark.parametrize("command", ["status", "inspect"])
def test_a_table_of_a_store_imports_no_torch(finished: tuple[Config, Store], command: str) -> None:
    shown = f"assert CliRunner().invoke(app, [{command!r}, '-s', {finished[1].url!r}]).exit_code == 0; "
    modules = answer_of(f"{OURS}; from typer.testing import CliRunner; {shown}print(*sys.modules)").split()
    assert not HEAVY & set(modules)


def test_both_entry_points_answer() -> None:
    for command in ([sys.executable, "-m", "nullbooth_cli"], [str(Path(sys.executable).parent / "nullbooth")]):
        shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"nullbooth \d+\.\d+\.\d+\n", shown)


def test_without_a_command_the_help_is_shown_as_it_is() -> None:
    asked, alone = nullbooth("--help"), nullbooth()
    assert alone.exit_code == 2
    assert alone.stderr.rstrip() == asked.stdout.rstrip()


def test_the_help_has_each_command_in_one_whole_line() -> None:
    listed = nullbooth("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("..") for line in listed)


def test_no_to_a_question_is_not_an_interrupt() -> None:
    asking = typer.Typer(cls=Boundary, rich_markup_mode=None)
    asking.callback()(lambda: None)
    asking.command("ask")(lambda: typer.confirm("replace?", abort=True, err=True))
    answered = CliRunner().invoke(asking, ["ask"], input="n\n")
    assert answered.exit_code == 130
    assert answered.stderr.endswith("stopped: nothing was replaced\n")
    assert "interrupted" not in answered.stderr


def test_the_end_of_a_file_is_a_bug_and_no_interrupt() -> None:
    """Typer takes every EOFError for the end of the input; one of an empty file keeps its traceback."""
    asking = typer.Typer(cls=Boundary, rich_markup_mode=None)
    asking.callback()(lambda: None)

    def read() -> None:
        raise EOFError("No data left in file")

    asking.command("read")(read)
    asking.command("ask")(lambda: typer.confirm("replace?", abort=True, err=True))
    answered = CliRunner().invoke(asking, ["read"])
    assert answered.exit_code == 1
    assert repr(answered.exception) == "EOFError('No data left in file')"
    assert "interrupted" not in answered.stderr
    assert "stopped" not in answered.stderr
    without_an_answer = CliRunner().invoke(asking, ["ask"], input="")
    assert without_an_answer.exit_code == 130
    assert without_an_answer.stderr.endswith("stopped: nothing was replaced\n")


@pytest.mark.parametrize(("command", "resumes"), [("train", True), ("collect", True), ("evaluate", False), ("status", False)])
def test_an_interrupt_says_only_where_there_is_something_to_resume(
    monkeypatch: pytest.MonkeyPatch, command: str, resumes: bool
) -> None:
    """`evaluate` starts again, and a second Ctrl-C in `train` loses steps: neither has finished units."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TyperGroup, "invoke", interrupted)
    result = nullbooth(command)
    assert result.exit_code == 130
    assert result.stderr == ("interrupted: run the same command again to resume\n" if resumes else "interrupted\n")
