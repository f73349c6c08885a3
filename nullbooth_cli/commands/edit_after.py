"""`nullbooth edit --after MODEL`: the store remembers first how that model came about; a dry run only takes it into account."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.commands.session import Session
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.store.tasks import listed_tasks

if TYPE_CHECKING:
    from nullbooth_cli.editing.report import EditReport


def remember_before(session: Session, place: str, device: str | None) -> list[str]:
    """Let the store remember the edits and training runs that led to a place; the names of those that it did not yet.

    Raises every error of `remember`: for a training run without prompts, for a name that is taken.
    """
    from nullbooth_cli.editing.remember import request_of
    from nullbooth_cli.model.edit_file import edit_chain
    from nullbooth_cli.pipeline.remember import remember_events

    remembered = []
    for each in edit_chain(place):
        request = request_of(session.config, each)
        if not _is_listed(session, request.name):
            session.terminal.follow(remember_events(session.config, request, device=device))
            remembered.append(request.name)
    return remembered


def edits_before(session: Session, place: str) -> "Sequence[EditReport]":
    """The edits that led to a place and that the store does not remember, in order; nothing is written.

    Raises ConfigError for a training run among them: its prompts have to be recorded before an edit can preserve them.
    """
    from nullbooth_cli.editing.record import read_edit_record
    from nullbooth_cli.editing.remember import request_of
    from nullbooth_cli.model.edit_file import edit_chain

    reports: list[EditReport] = []
    for each in reversed(edit_chain(place)):
        if _is_listed(session, request_of(session.config, each).name):
            break
        if (record := read_edit_record(each)) is None:
            raise ConfigError(f"{session.url} does not remember {each} yet", f"nullbooth remember {each} -s {session.url}")
        reports.insert(0, record.report())
    return reports


def _is_listed(session: Session, name: str) -> bool:
    return name in {entry.name for entry in listed_tasks(session.open())}


def absolute(place: str) -> str:
    """A place as a record may keep it: a path from the root, anything else as it is."""
    return str(Path(place).absolute()) if Path(place).exists() else place
