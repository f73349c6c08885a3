"""Measures what an edited model forgot and learned: its pictures beside those of the base, from the same prompts and noise.

1. The base draws, the base draws again from another seed, and every edited model draws; one is loaded at a time.
2. Each is compared with the base on every set of prompts. The base from another seed is the baseline: a distance is given as a
   share of it, and 1 means as different as another seed. The drift of the weights needs no pictures.
3. `evaluate()` is the function for Python; `evaluation_events()` yields events while it runs.
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect.edited_model import read_place
from nullbooth_cli.evaluation.answer import (
    SUBJECT,
    EvaluationReport,
    InstanceLoss,
    ModelAnswer,
    PictureComparison,
    SubjectComparison,
)
from nullbooth_cli.evaluation.compare import (
    FEWEST,
    ComparedPictures,
    PictureFeatures,
    compare_pictures,
    compare_subject,
    extract_features,
)
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE, DrawnBase, DrawnModels
from nullbooth_cli.evaluation.encoders import FeatureSpaces, load_feature_spaces
from nullbooth_cli.evaluation.instance_loss import NO_LOSS, instance_loss
from nullbooth_cli.evaluation.learned import learned_verdict
from nullbooth_cli.evaluation.pictures import Pictures
from nullbooth_cli.evaluation.request import (
    NUM_PROMPTS,
    SUBJECT_IMAGES,
    EvaluationRequest,
    PictureSets,
    picture_sets,
    slices_of,
)
from nullbooth_cli.evaluation.subject import NO_PICTURES, NO_PROMPT, find_subject
from nullbooth_cli.evaluation.verdict import Verdict, forgotten
from nullbooth_cli.evaluation.weight_drift import weight_drifts
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.progress import Event, Note, result_of
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store

Place = str | Path
Prompts = Sequence[str] | str | Path  # texts, or a file of prompts
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Evaluation:
    """The answer, and the pictures behind it: those of each model, by its name, in the order of the sets."""

    report: EvaluationReport
    sets: PictureSets
    drawn: Mapping[str, Pictures]


class OpenedStore(Protocol):
    """An open store as `nb.open_store` returns it."""

    @property
    def store(self) -> Store:
        """The store below it."""

    def require(self, stage: str) -> None:
        """Raise StageError unless a stage is complete."""


def evaluate(
    store: OpenedStore,
    edited: Place,
    *,
    config: Config | None = None,
    against: Sequence[Place] = (),
    prompts: Prompts | None = None,
    subject: Prompts = (),
    num_prompts: int = NUM_PROMPTS,
    subject_images: int = SUBJECT_IMAGES,
    instances: Place | None = None,
    encoders: Mapping[str, Place] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Evaluation:
    """Measure what an edited model forgot and learned against the base that `store` was collected from.

    `edited` and `against` are pipeline folders, hub ids, what training runs wrote, or LoRAs: a file of diffusers or kohya, a
    folder of PEFT, with a scale as `lora@0.8`, several as `one@0.8+other`. `prompts` replaces the preserved and held-out prompts
    of the store. `subject` are prompts of the learned subject, and `instances` is a folder of the pictures it was learned from.
    By default both are those of the training run that made a model. `config` is the store's own by default; `encoders` gives
    folders of CLIP or DINO by name, else they come from the hub's cache. `batch_size` pictures are drawn together, by default as
    many as the config collects together.

    Raises StageError unless the stage covariance is complete, ConfigError if the base is not the model that was collected from or
    a model cannot be loaded whole, before anything is drawn. Cost: as `evaluation_events`.
    """
    store.require("covariance")
    opened = store.store
    found = build_config(opened.config) if config is None else config
    if prompts is None:
        preserved = {"preserved": opened.prompts(), "heldout": heldout_prompts(found)}
    else:
        preserved = {"given": load_prompts(_source(prompts), "prompts")}
    named = load_prompts(_source(subject), "subject") if subject else ()
    places = tuple(map(str, (edited, *against)))
    found_subject = find_subject(places, named, None if instances is None else Path(instances))
    request = EvaluationRequest(
        edited=places,
        sets=picture_sets(preserved, found_subject.prompts, num_prompts=num_prompts, subject_images=subject_images),
        encoders={name: str(folder) for name, folder in (encoders or {}).items()},
        instances=found_subject.instances,
        no_instances=found_subject.missing,
        device=device,
        batch_size=found.collect.batch_size if batch_size is None else batch_size,
    )
    return result_of(evaluation_events(found, opened, request), on_event)


def _source(prompts: Prompts) -> str | list[str]:
    return str(prompts) if isinstance(prompts, str | Path) else list(prompts)


def evaluation_events(config: Config, store: Store, request: EvaluationRequest) -> Generator[Event, None, Evaluation]:
    """Draw with every model and compare. Raises as `evaluate` does; that the stage covariance is complete is the caller's check.

    Cost: a picture of each spec for the base, for its other seed and for each edited model, one model on the device at a time. In
    host memory all of the pictures, and the protected weights of every model.
    """
    device = pick_device(request.device)
    spaces = load_feature_spaces(request.encoders, device)
    for place in request.edited:
        edited = read_place(config, place)
        yield from map(Note, edited.notes)
        if SUBJECT in request.sets and (note := edited.word_note([spec.prompt.text for spec in request.sets[SUBJECT]])):
            yield Note(f"{place}: {note}")
    if note := spaces.cut_off_note(spec.prompt.text for spec in request.specs):
        yield Note(f"for CLIP {note}")
    models = DrawnModels(config=config, store=store, request=request, device=device)
    base = yield from models.draw_base(spaces)
    for place in request.edited:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield from models.draw_edited(place, base)
    yield Note("comparing")
    return Evaluation(_report(config, store, request, spaces, models, base), request.sets, models.drawn)


def _report(
    config: Config,
    store: Store,
    request: EvaluationRequest,
    spaces: FeatureSpaces,
    models: DrawnModels,
    base: DrawnBase,
) -> EvaluationReport:
    is_toy, texts = config.model == "toy", [spec.prompt.text for spec in request.specs]
    features = {name: extract_features(drawn, texts, spaces, is_toy=is_toy) for name, drawn in models.drawn.items()}
    heldout = store.heldout() if config.heldout_prompts is not None else None
    drifts = weight_drifts(store, heldout, models.weights[BASE], [models.weights[place] for place in request.edited])
    answers = []
    for place, drift in zip(request.edited, drifts, strict=True):
        loss = instance_loss(models.errors[BASE], models.errors[place]) if base.has_loss else None
        compared = _compare(request, features, place, spaces, instances=base.instances, loss=loss)
        subject = compared.pop(SUBJECT, None)
        assert subject is None or isinstance(subject, SubjectComparison)
        answers.append(
            ModelAnswer(
                edited=place,
                verdicts=tuple(_verdicts(compared, subject)),
                preservation=compared,
                subject=subject,
                drift=drift,
            )
        )
    first = answers[0]
    return EvaluationReport(
        store=store.url,
        base=config.model,
        edited=first.edited,
        verdicts=first.verdicts,
        dtype=config.dtype,
        num_steps=store.num_steps,
        guidance_scale=config.collect.guidance_scale,
        preservation=first.preservation,
        subject=first.subject,
        baseline=_compare(request, features, ANOTHER, spaces, instances=base.instances, loss=None),
        against=tuple(answers[1:]),
        not_measured=_not_measured(request, spaces, first, is_toy=is_toy, has_loss=base.has_loss),
        drift=first.drift,
    )


def _compare(
    request: EvaluationRequest,
    features: Mapping[str, PictureFeatures],
    model: str,
    spaces: FeatureSpaces,
    *,
    instances: Mapping[str, Floats] | None,
    loss: InstanceLoss | None,
) -> dict[str, PictureComparison]:
    """One model beside the base on every set of prompts."""
    found: dict[str, PictureComparison] = {}
    for name, places in slices_of(request.sets).items():
        base, another, edited = (features[each].take(places) for each in (BASE, ANOTHER, model))
        compared = ComparedPictures(request.sets[name], base, another, edited)
        of_subject = name == SUBJECT
        found[name] = compare_subject(compared, spaces, instances, loss) if of_subject else compare_pictures(compared, spaces)
    return found


def _verdicts(preservation: Mapping[str, PictureComparison], subject: SubjectComparison | None) -> Iterator[Verdict]:
    """What was learned, if it was measured, and what was forgotten, if any preserved prompt was drawn."""
    if subject is not None and (verdict := learned_verdict(subject)) is not None:
        yield verdict
    if preservation:
        yield forgotten({name: each.latent_mse_relative for name, each in preservation.items()})


def _not_measured(
    request: EvaluationRequest, spaces: FeatureSpaces, first: ModelAnswer, *, is_toy: bool, has_loss: bool
) -> dict[str, str]:
    """The reason that each missing quantity was not measured."""
    why = dict(spaces.missing)
    if spaces.alignment is None and "clip" not in why:
        why["text_alignment"] = "the CLIP folder has no tokenizer"
    if not is_toy:
        why["captions_right"] = "only drawings of the embedded model can be read back exactly"
    if SUBJECT not in request.sets:
        why["subject"] = NO_PROMPT
    elif not request.instances:
        why["instances"] = request.no_instances or NO_PICTURES
    elif not has_loss:
        why["instance_loss"] = NO_LOSS
    if not any(verdict.question == "learned" for verdict in first.verdicts):
        no_scale = f"no feature space gives a scale for the pictures of the subject, and {NO_LOSS}"
        why["learned"] = why.get("subject") or why.get("instances") or no_scale
    for name, specs in request.sets.items():
        if len(specs) < FEWEST:
            why[f"distributions of {name}"] = f"{len(specs)} pictures are too few to compare distributions: it takes {FEWEST}"
    return why
