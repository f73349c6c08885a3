"""What `nullbooth evaluate` asks for, and how its answer is drawn."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.commands.options import Common
from nullbooth_cli.commands.session import Session, start
from nullbooth_cli.commands.tables import table
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation import evaluate
from nullbooth_cli.evaluation.evaluate import SUBJECT, Evaluation, Request
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.formatting import counted
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.settings.prompts import load_prompts


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of the command."""

    models: tuple[str, ...]
    prompts: str | None
    subject: tuple[str, ...]
    subject_prompts: str | None
    instances: str | None
    num_prompts: int
    subject_images: int
    features: tuple[str, ...]
    html: str | None
    images: str | None
    device: str | None


def evaluate_models(common: Common, asked: EvaluateOptions) -> None:
    """Evaluate, write what is to be written, and answer."""
    session = start(common)
    if len(set(asked.models)) < len(asked.models):
        raise ConfigError(f"a model is named twice: {' '.join(asked.models)}", "name each once")
    store = session.open()
    require(stage_states(session.config, session.prompts, store), "covariance", session.url)
    instances = Path(asked.instances) if asked.instances else None
    request = Request(asked.models, _sets(session, asked), _features(asked.features), instances, asked.device)
    made: list[Evaluation] = []

    def events() -> Iterator[Event]:
        found = yield from evaluate.evaluate(session.config, store, request)
        made.append(found)
        files = found.document["files"] = []
        for path in _written(found, asked):
            files.append(str(path))
            yield Note(f"written: {path}")

    session.terminal.follow(events())
    session.terminal.answer(made[0].document, draw_table)


def _written(found: Evaluation, asked: EvaluateOptions) -> Iterator[Path]:
    from nullbooth_cli.report import gallery

    if asked.images:
        yield gallery.write_images(Path(asked.images), found)
    if asked.html:
        yield gallery.write_gallery(Path(asked.html), found)


def _sets(session: Session, asked: EvaluateOptions) -> dict[str, tuple[PictureSpec, ...]]:
    """What is drawn, by the name that the answer gives it."""
    if asked.subject and asked.subject_prompts:
        raise ConfigError("--subject and --subject-prompts name the same", "put all of them into the file")
    if asked.instances and not (asked.subject or asked.subject_prompts):
        raise ConfigError("--instances are pictures of a subject, and none is named", "add --subject or --subject-prompts")
    if asked.prompts:
        sets = {"given": load_prompts(asked.prompts, "--prompts")}
    else:
        sets = {"kept": session.prompts, "heldout": heldout_prompts(session.config)}
    found = {name: tuple(map(PictureSpec, _some(of, asked.num_prompts))) for name, of in sets.items() if of}
    subject = asked.subject_prompts or list(asked.subject)
    if subject:
        prompts = load_prompts(subject, "--subject-prompts")
        found[SUBJECT] = tuple(PictureSpec(prompt, number) for prompt in prompts for number in range(asked.subject_images))
    return found


def _some(prompts: tuple[Prompt, ...], most: int) -> list[Prompt]:
    """At most so many of the prompts, drawn at random (always the same), in their order."""
    return [prompts[i] for i in sorted(random.Random(0).sample(range(len(prompts)), min(most, len(prompts))))]


def _features(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign:
            raise ConfigError(f"--features {text} has no '='", "write --features clip=FOLDER")
        found[name] = folder
    return found


def draw_table(document: dict[str, Any]) -> list[Any]:
    """Quantities down, models across; what was not measured below, with the reason."""
    models = [document, *document["against"]]
    rows, before = [], ""
    for row in evaluate.summary(document):
        if before and row["prompts"] != before:
            rows.append([""] * (3 + len(models)))
        before = row["prompts"]
        rows.append([before, row["quantity"], *("" if value is None else f"{value:.3g}" for value in row["values"])])
    columns = ["prompts", "quantity", evaluate.ANOTHER, *evaluate.names_of(document)]
    drawn = table(columns, rows, right=frozenset(range(2, len(columns))))
    missing = (f"not measured: {name}: {why}" for name, why in document["not_measured"].items())
    return [drawn, *(_drift(found) for found in models), *missing]


def _drift(found: dict[str, Any]) -> str:
    drift, others = found["drift"], len(found["drift"]["unprotected_changed"])
    heldout = "" if drift["largest_heldout"] is None else f", of held-out prompts {drift['largest_heldout']:.2g}"
    return (
        f"{found['edited']}: what protected weights make of the kept inputs drifts by at most {drift['largest']:.2g}{heldout}; "
        f"{counted(drift['protected_changed'], 'protected weight')} changed, {counted(others, 'other')}"
    )
