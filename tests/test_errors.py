"""Every error has the exit code that docs/reference/errors.md gives it."""

import re

import pytest
import typer
from typer.testing import CliRunner

from nullbooth_cli import errors
from nullbooth_cli.cli import Boundary
from nullbooth_cli.errors import NullboothError, Rerun
from tests.support.builders import ROOT

CLASSES = NullboothError.__subclasses__()
PAGE = (ROOT / "docs/reference/errors.md").read_text()
DOCUMENTED = {int(code): row for code, row in re.findall(r"^\| (\d+) \| (.+)$", PAGE, re.MULTILINE)}


def exit_code_of(raised: BaseException | None) -> int:
    app = typer.Typer(cls=Boundary)

    @app.command()
    def stop() -> None:
        if raised is not None:
            raise raised

    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["stop"]).exit_code


def test_the_page_has_every_exit_code_and_no_other() -> None:
    assert set(DOCUMENTED) == {0, 1, 130, 143, *(kind.exit_code for kind in CLASSES)}
    assert len({kind.exit_code for kind in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_ends_the_command_with_its_code(kind: type[NullboothError]) -> None:
    assert exit_code_of(kind("wrong", "right")) == kind.exit_code
    assert f"`{kind.__name__}`" in DOCUMENTED[kind.exit_code]
    assert re.search(rf"{kind.__name__} .*exit {kind.exit_code}$", errors.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize(
    ("raised", "code"), [(None, 0), (ZeroDivisionError(), 1), (KeyboardInterrupt(), 130), (typer.Abort(), 130)]
)
def test_other_endings(raised: BaseException | None, code: int) -> None:
    assert exit_code_of(raised) == code


@pytest.mark.parametrize(
    ("rerun", "text"),
    [
        (Rerun("collect"), 'nb.run(config, stages=["collect"])'),
        (Rerun("collect", force=True, repair=True), 'nb.run(config, stages=["collect"], force=True, repair=True)'),
        (
            Rerun("project", settings=("a.b=1", "c=2"), otherwise=", or stop"),
            'nb.run(config, stages=["project"]) with a.b=1, c=2, or stop',
        ),
    ],
)
def test_a_stage_to_run_is_a_call_in_python(rerun: Rerun, text: str) -> None:
    error = errors.StageError("wrong", rerun)
    assert (error.hint, error.rerun) == (text, rerun)
