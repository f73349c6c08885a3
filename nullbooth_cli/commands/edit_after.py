"""`nullbooth edit --after MODEL`: the store remembers first how that model came about; a dry run only takes it into account."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.commands.session import Session
from nullbooth_cli.errors import ConfigError

if TYPE_CHECKING:
    from nullbooth_cli.editing.report import EditReport
    from nullbooth_cli.model.after import After
    from nullbooth_cli.settings.config import Config


def remember_chain(session: Session, place: str, device: str | None) -> list[str]:
    """Let the store remember the edits and training runs that led to a place; the names of those that it did not yet.

    Raises every error of `remember`: for a training run without prompts, for a model that has changed.
    """
    return [_remember(session, each, device) for each in _not_remembered(session, place)]


def _remember(session: Session, place: str, device: str | None) -> str:
    """Let the store remember a model; the name of the task."""
    from nullbooth_cli.commands.signals import follow
    from nullbooth_cli.editing.remember import request_of
    from nullbooth_cli.pipeline.remember import remember_events

    request = request_of(session.config, place)
    follow(session.terminal, lambda interrupts: remember_events(session.config, request, device=device, interrupts=interrupts))
    return request.name


def edits_before(session: Session, place: str) -> "Sequence[EditReport]":
    """The edits that led to a place and that the store does not remember, in order; nothing is written.

    Raises ConfigError for a training run among them: its prompts have to be recorded before an edit can preserve them.
    """
    from nullbooth_cli.editing.record import read_edit_record

    reports: list[EditReport] = []
    for each in _not_remembered(session, place):
        if (record := read_edit_record(each)) is None:
            raise ConfigError(
                f"{session.url} does not remember {each} yet", shlex.join(["nullbooth", "remember", each, "-s", session.url])
            )
        reports.append(record.report())
    return reports


def record_of(config: "Config", place: str, output: Path) -> "After":
    """What an edit in the folder `output` records of the model that it edited."""
    from nullbooth_cli.model.after import After

    return After.of(place, output, digest=_digest_at(config, place))


def _not_remembered(session: Session, place: str) -> list[str]:
    """The models that led to a place after the last of them that the store remembers, in order."""
    from nullbooth_cli.model.edit_file import edit_chain
    from nullbooth_cli.store import remembered

    store, found = session.open(), list[str]()
    for each in edit_chain(place, lambda before: _digest_at(session.config, before)):
        if remembered(store, each):
            break
        found.insert(0, each)
    return found


def _digest_at(config: "Config", place: str) -> str | None:
    """The digest of an edit, or of the files that are put onto a base; None for another pipeline."""
    from nullbooth_cli.collect.edited_model import read_place
    from nullbooth_cli.model.edit_file import edit_digest

    return edit_digest(place) or read_place(config, place).digest
