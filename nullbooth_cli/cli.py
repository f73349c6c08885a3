"""The Typer app, and the place where errors become `error:`, `hint:` and an exit code. Bugs keep their traceback."""

import difflib
import sys
from collections.abc import Sequence
from signal import SIGINT
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nullbooth_cli import __version__
from nullbooth_cli.commands.collect import collect
from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.covariance import covariance
from nullbooth_cli.commands.doctor import doctor
from nullbooth_cli.commands.edit import EditCommand, edit
from nullbooth_cli.commands.evaluate import evaluate
from nullbooth_cli.commands.export import export
from nullbooth_cli.commands.hints import carried_options
from nullbooth_cli.commands.import_ import import_
from nullbooth_cli.commands.init import init
from nullbooth_cli.commands.inspect import inspect
from nullbooth_cli.commands.merge import merge
from nullbooth_cli.commands.project import project
from nullbooth_cli.commands.refit import refit
from nullbooth_cli.commands.remember import remember
from nullbooth_cli.commands.run import run
from nullbooth_cli.commands.sample import sample
from nullbooth_cli.commands.schedule import schedule
from nullbooth_cli.commands.signals import EXIT_CODES
from nullbooth_cli.commands.status import status
from nullbooth_cli.commands.teach import teach
from nullbooth_cli.commands.train import train
from nullbooth_cli.errors import ConfigError, NullboothError

RESUMING = (run, collect, covariance, project, merge, train, teach, remember)  # what they have finished stays


class Boundary(TyperGroup):
    """Turns the errors of a command into an exit code and two lines, for every caller: a shell, CliRunner, `python -m`."""

    def main(self, args: Sequence[str] | None = None, *positional: Any, **extra: Any) -> Any:
        """Run a command and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args)
        terminal = Terminal(as_json="--json" in arguments)
        try:
            code = super().main(arguments, *positional, **{**extra, "standalone_mode": False})
        except NullboothError as error:
            terminal.error(error, carried_options(arguments))
            code = error.exit_code
        except typer.TyperException as error:
            if not arguments:
                terminal.note(error.format_message())  # the help
            else:
                terminal.error(self._usage(error, arguments))
            code = ConfigError.exit_code
        except typer.Abort as error:  # the answer to a question was no, or there was none
            if isinstance(error.__cause__, EOFError):  # typer takes every one for the end of an input: this is of some file
                raise error.__cause__ from None
            terminal.note("stopped: nothing was replaced")
            sys.exit(EXIT_CODES[SIGINT])
        except KeyboardInterrupt:
            code = EXIT_CODES[SIGINT]
        if code in EXIT_CODES.values():
            resumes = next((word for word in arguments if not word.startswith("-")), "") in {each.__name__ for each in RESUMING}
            terminal.note("interrupted: run the same command again to resume" if resumes else "interrupted")
        sys.exit(code if isinstance(code, int) else 0)

    def _usage(self, error: typer.TyperException, arguments: list[str]) -> ConfigError:
        message = error.format_message().rstrip(".")
        command = next((word for word in arguments if not word.startswith("-")), "")
        if command in self.commands:
            return ConfigError(message[0].lower() + message[1:], f"see nullbooth {command} --help")
        near = difflib.get_close_matches(command, self.commands, n=1)
        hint = f"did you mean 'nullbooth {near[0]}'?" if near else f"choose one of {', '.join(self.commands)}"
        return ConfigError(f"no such command '{command}'" if command else message[0].lower() + message[1:], hint)


app = typer.Typer(
    name="nullbooth",
    cls=Boundary,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(init, teach, run, schedule, collect, covariance, project, inspect, status, doctor),
    *(merge, export, import_, edit, train, remember, refit, evaluate, sample),
)
for _command in _COMMANDS:
    app.command(_command.__name__.rstrip("_"), cls=EditCommand if _command is edit else None)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        Terminal().text(f"nullbooth {__version__}\n")
        raise typer.Exit


@app.callback()
def nullbooth(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Null-space projectors for fine-tuning text-to-image models without forgetting.

    Example: nullbooth run -c configs/nullbooth.yaml && nullbooth inspect
    """
