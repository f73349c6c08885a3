"""Reads the options of `nullbooth evaluate`, and draws its answer."""

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.evaluate_checkpoints import draw_checkpoints
from nullbooth_cli.commands.find_config import find_config
from nullbooth_cli.commands.options import Common
from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.commands.signals import interruptible
from nullbooth_cli.commands.tables import table
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.editing.verbs import as_mapping, read_edits
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.answer import SUBJECT, Drift, EvaluationReport
from nullbooth_cli.evaluation.build_request import build_request
from nullbooth_cli.evaluation.checkpoints import checkpoint_events
from nullbooth_cli.evaluation.draw_models import ANOTHER
from nullbooth_cli.evaluation.edited_prompts import EditedPrompts, NoEdits, find_edits
from nullbooth_cli.evaluation.evaluate import Evaluation, evaluation_events
from nullbooth_cli.evaluation.request import EvaluationRequest
from nullbooth_cli.evaluation.subject import NoSubject, Subject, find_subject, store_of
from nullbooth_cli.evaluation.summary import summary
from nullbooth_cli.evaluation.verdict import SET_NAMES
from nullbooth_cli.formatting import counted
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.progress import Event, Interrupts, Note
from nullbooth_cli.report.inspection import InspectReport, inspect_store
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store

# The options that let a missing quantity be measured.
MISSING_OPTIONS = {
    "generalisation": "give some with --paraphrases",
    "learned": "name the subject with --subject, and its pictures with --instances",
    SUBJECT: "name one with --subject or --subject-prompts",
    "instances": "give them with --instances",
    "clip": "give it with --features clip=FOLDER",
    "dino": "give it with --features dino=FOLDER",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The options of the command."""

    models: tuple[str, ...]
    prompts: str | None
    subject: tuple[str, ...]
    subject_prompts: str | None
    instances: str | None
    edits: str | None
    paraphrases: str | None
    base: str | None
    num_prompts: int
    subject_images: int
    features: tuple[str, ...]
    checkpoints: bool
    html: str | None
    images: str | None
    device: str | None


def evaluate_models(common: Common, options: EvaluateOptions) -> None:
    """Evaluate, write the requested files, and answer."""
    session = start(_with_store(common, options.models[0]))
    store = session.open()
    require(stage_states(session.config, session.prompts, store), "covariance", session.url)
    request = build_request(
        options.models,
        _preserved(session, options),
        subject=_subject(options),
        edits=_edits(options),
        base=options.base,
        num_prompts=options.num_prompts,
        subject_images=options.subject_images,
        encoders=_features(options.features),
        device=options.device,
        batch_size=session.config.collect.batch_size,
    )
    with interruptible(Interrupts(), session.terminal.note, "the pictures"):
        if options.checkpoints:
            _answer_checkpoints(session, store, request, options)
        else:
            _answer_models(session, store, request, options)


def _with_store(common: Common, model: str) -> Common:
    """The options, where no config and no store is named or found with the store that constrained the training of the model."""
    is_named = common.config or common.store or common.overrides or os.environ.get("NULLBOOTH_STORE") or find_config(None)
    return common if is_named else replace(common, store=store_of(model))


def _answer_models(session: Session, store: Store, request: EvaluationRequest, options: EvaluateOptions) -> None:
    _require_writable(options)
    states = stage_states(session.config, session.prompts, store)

    def events() -> Generator[Event, None, EvaluationReport]:
        found = yield from evaluation_events(session.config, store, request)
        files = []
        projectors = inspect_store(session.config, store) if states["project"].state == "complete" else None
        for path in _written(found, options, projectors):
            files.append(str(path))
            yield Note(f"written: {path}")
        return replace(found.report, files=tuple(files))

    session.terminal.answer(session.terminal.result_of(events()), draw_table)


def _answer_checkpoints(session: Session, store: Store, request: EvaluationRequest, options: EvaluateOptions) -> None:
    if options.html or options.images or len(options.models) > 1:
        raise ConfigError(
            "--checkpoints gives a table, or --json, of one training run",
            "leave out --html, --images and --against, and evaluate the best checkpoint with them",
        )
    run = options.models[0]
    report = session.terminal.result_of(checkpoint_events(session.config, store, request, run))
    session.terminal.answer(report, draw_checkpoints)
    if report.best is not None:
        session.terminal.next(next_command.finish(run, report.best.step))


def _require_writable(options: EvaluateOptions) -> None:
    """Raise an error for a place that cannot be written: drawing takes minutes."""
    from nullbooth_cli.report.files import require_writable

    if options.html and Path(options.html).is_dir():
        raise ConfigError(f"--html {options.html} is a folder", "name a file")
    for folder in (*([options.images] if options.images else ()), *([Path(options.html).parent] if options.html else ())):
        require_writable(Path(folder))


def _written(found: Evaluation, options: EvaluateOptions, projectors: InspectReport | None) -> Iterator[Path]:
    from nullbooth_cli.report import gallery

    if options.images:
        yield gallery.write_images(Path(options.images), found)
    if options.html:
        yield gallery.write_gallery(Path(options.html), found, projectors)


def _subject(options: EvaluateOptions) -> Subject:
    """The subject that the options name, or that a training run taught."""
    if options.subject and options.subject_prompts:
        raise ConfigError("--subject and --subject-prompts name the same", "put all of them into the file")
    if "" in (text.strip() for text in options.subject):
        raise ConfigError("--subject is an empty text", "write a prompt of the subject, such as 'a photo of sks dog'")
    named = options.subject_prompts or list(options.subject)
    prompts = load_prompts(named, "--subject-prompts") if named else ()
    try:
        return find_subject(options.models, prompts, Path(options.instances) if options.instances else None)
    except NoSubject as error:
        raise ConfigError(
            "--instances are pictures of a subject, but no subject is named", "add --subject or --subject-prompts"
        ) from error


def _preserved(session: Session, options: EvaluateOptions) -> dict[str, Sequence[Prompt]]:
    """The prompts to measure preservation on, by the name that the answer gives their set."""
    if options.prompts:
        return {"given": load_prompts(options.prompts, "--prompts")}
    return {"preserved": session.prompts, "heldout": heldout_prompts(session.config)}


def _edits(options: EvaluateOptions) -> EditedPrompts | None:
    """The edit that the options name, or that is recorded beside a model."""
    files = (options.edits, options.paraphrases)
    edits, paraphrases = (None if file is None else as_mapping(read_edits(file, None).pairs) for file in files)
    try:
        return find_edits(options.models, edits, paraphrases)
    except NoEdits as error:
        raise ConfigError("--paraphrases are of an edit, and no edit is known", "add --edits") from error


def _features(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign:
            raise ConfigError(f"--features {text} has no '='", "write --features clip=FOLDER")
        found[name] = folder
    return found


def draw_table(report: EvaluationReport) -> list[Any]:
    """A row for each quantity, a column for each model; below, the quantities that were not measured, with the reason."""
    columns = ["prompts", "quantity", ANOTHER, *report.model_names]
    rows: list[list[str]] = []
    for row in summary(report):
        prompts = SET_NAMES.get(row.prompts, row.prompts)
        if rows and prompts != rows[-1][0]:
            rows.append([""] * len(columns))
        rows.append([prompts, row.quantity, *("" if value is None else f"{value:.3g}" for value in row.values)])
    drawn = table(columns, rows, right=frozenset(range(2, len(columns))))
    missing = (f"not measured: {_in_words(name)}: {_with_option(name, why)}" for name, why in report.not_measured.items())
    drifts = (_drift_line(model.edited, model.drift) for model in report.models if model.drift is not None)
    return [*verdict_lines(report), drawn, *drifts, *missing]


def verdict_lines(report: EvaluationReport) -> list[str]:
    """The verdicts on each model with their advice; the name of the model before them if there are several."""
    lines = []
    for name, model in zip(report.model_names, report.models, strict=True):
        before = f"{name}: " if report.against else ""
        for verdict in model.verdicts:
            text, *advice = verdict.lines
            lines += [f"{before}{text}", *advice]
    return [*lines, ""] if lines else []


def _in_words(name: str) -> str:
    start, _, prompts = name.rpartition(" ")
    return f"{start} {SET_NAMES[prompts]}" if start and prompts in SET_NAMES else name


def _with_option(name: str, why: str) -> str:
    return f"{why}; {MISSING_OPTIONS[name]}" if name in MISSING_OPTIONS else why


def _drift_line(edited: str, drift: Drift) -> str:
    others = len(drift.unprotected_changed)
    heldout = "" if drift.largest_heldout is None else f", of held-out prompts {drift.largest_heldout:.2g}"
    return (
        f"{edited}: the outputs of protected weights drift by at most {drift.largest:.2g} on preserved inputs{heldout}; "
        f"{counted(drift.protected_changed, 'protected weight')} changed, {counted(others, 'other')}"
    )
