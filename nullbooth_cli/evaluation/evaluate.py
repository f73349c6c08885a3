"""Measures what an edited model forgot and learned: its pictures beside those of the base, from the same prompts and noise.

1. The base draws, the base draws again from another seed, and every edited model draws; one is loaded at a time.
2. Each is compared with the base on every set of prompts. The base from another seed is the baseline: a distance is given as a
   share of it, and 1 means as different as another seed. The drift of the weights needs no pictures.
3. `evaluate()` is the function for Python; `evaluation_events()` yields events while it runs.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.collect.edited_model import read_place
from nullbooth_cli.evaluation.answer import (
    EARLIER,
    SUBJECT,
    Drift,
    EditScores,
    EvaluationReport,
    InstanceLoss,
    ModelAnswer,
    PictureComparison,
    SubjectComparison,
)
from nullbooth_cli.evaluation.build_request import build_request
from nullbooth_cli.evaluation.compare import (
    ComparedPictures,
    PictureFeatures,
    compare_pictures,
    compare_subject,
    extract_features,
)
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE, DrawnBase, DrawnModels
from nullbooth_cli.evaluation.edit_scores import edit_verdicts, score_edit
from nullbooth_cli.evaluation.edited_prompts import find_edits
from nullbooth_cli.evaluation.encoders import FeatureSpaces, load_feature_spaces
from nullbooth_cli.evaluation.instance_loss import instance_loss
from nullbooth_cli.evaluation.learned import learned_verdict
from nullbooth_cli.evaluation.not_measured import not_measured
from nullbooth_cli.evaluation.pictures import Pictures
from nullbooth_cli.evaluation.request import (
    NUM_PROMPTS,
    OF_EDIT,
    SUBJECT_IMAGES,
    EvaluationRequest,
    PictureSets,
    slices_of,
)
from nullbooth_cli.evaluation.subject import find_subject
from nullbooth_cli.evaluation.verdict import EDIT_BETTER, FORGOT_LESS, Verdict, earlier, forgotten
from nullbooth_cli.evaluation.weight_drift import weight_drifts
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.progress import Event, Note, result_of
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.knowledge import heldout_prompts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.store import Store

Place = str | Path
Prompts = Sequence[str] | str | Path  # texts, or a file of prompts
Edits = Mapping[str, str | Sequence[str]]  # the target of each edited prompt, or several
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Evaluation:
    """The answer, and the pictures behind it: those of each model, by its name, in the order of the sets.

    `targets` are the base's pictures of the targets of an edit, in the order of the request's `target_specs`; None without any.
    """

    report: EvaluationReport
    sets: PictureSets
    drawn: Mapping[str, Pictures]
    targets: Pictures | None = None


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
    edits: Edits | None = None,
    paraphrases: Edits | None = None,
    base: Place | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Evaluation:
    """Measure what an edited model forgot and learned against a base, which is the model that `store` was collected from.

    `edited` and `against` are pipeline folders, hub ids, what training runs wrote, or LoRAs: a file of diffusers or kohya, a
    folder of PEFT, with a scale as `lora@0.8`, several as `one@0.8+other`. `prompts` replaces the preserved and held-out prompts
    of the store. `subject` are prompts of the learned subject, and `instances` is a folder of the pictures it was learned from.
    By default both are those of the training run that made a model. `edits` maps edited prompts to their targets, by default
    those of the record beside an edited pipeline. `paraphrases` maps other wordings in the same way; by default they are made.
    `base` is another model to compare with than the config's; what it was taught or edited before is then measured as well.
    `config` is the store's own by default; `encoders` gives folders of CLIP or DINO by name, else they come from the hub's cache.
    `batch_size` pictures are drawn together, by default as many as the config collects together.

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
    request = build_request(
        places,
        preserved,
        subject=find_subject(places, named, None if instances is None else Path(instances)),
        edits=find_edits(places, edits, paraphrases),
        base=None if base is None else str(base),
        num_prompts=num_prompts,
        subject_images=subject_images,
        encoders={name: str(folder) for name, folder in (encoders or {}).items()},
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
    if request.base is not None:
        yield from map(Note, read_place(config, request.base).notes)
    if note := spaces.cut_off_note(spec.prompt.text for spec in request.specs):
        yield Note(f"for CLIP {note}")
    if request.num_left_out:
        yield Note(
            f"{counted(request.num_left_out, 'prompt')} of the rest left out: what contains an edited prompt should change"
        )
    models = DrawnModels(config=config, store=store, request=request, device=device)
    base = yield from models.draw_base(spaces)
    for place in request.edited:
        yield from models.draw_edited(place, base)
    yield Note("comparing")
    return Evaluation(_report(config, store, request, spaces, models, base), request.sets, models.drawn, models.targets)


def _report(
    config: Config,
    store: Store,
    request: EvaluationRequest,
    spaces: FeatureSpaces,
    models: DrawnModels,
    base: DrawnBase,
) -> EvaluationReport:
    is_toy = config.model == "toy"
    features = {name: extract_features(drawn, request.specs, spaces, is_toy=is_toy) for name, drawn in models.drawn.items()}
    targets = None
    if models.targets is not None:
        targets = extract_features(models.targets, request.target_specs, spaces, is_toy=is_toy)
    answers = []
    for place, drift in zip(request.edited, _drifts(config, store, request, models, base), strict=True):
        loss = instance_loss(models.errors[BASE], models.errors[place]) if base.has_loss else None
        sets = _compared(request, features, place)
        compared = _compare(sets, spaces, instances=base.instances, loss=loss)
        subject = compared.pop(SUBJECT, None)
        assert subject is None or isinstance(subject, SubjectComparison)
        edit = None if targets is None else score_edit(sets, targets, spaces, request.num_left_out)
        answers.append(
            ModelAnswer(
                edited=place,
                verdicts=tuple(_verdicts(compared, subject, edit)),
                preservation=compared,
                subject=subject,
                edit=edit,
                drift=drift,
            )
        )
    first = answers[0]
    baseline = _compare(_compared(request, features, ANOTHER), spaces, instances=base.instances, loss=None)
    return EvaluationReport(
        store=store.url,
        base=config.model if request.base is None else request.base,
        edited=first.edited,
        verdicts=first.verdicts,
        dtype=config.dtype,
        num_steps=store.num_steps,
        guidance_scale=config.collect.guidance_scale,
        preservation=first.preservation,
        subject=first.subject,
        edit=first.edit,
        baseline=baseline,
        against=tuple(answers[1:]),
        not_measured=not_measured(request, spaces, first, is_toy=is_toy, base=base),
        drift=first.drift,
    )


def _drifts(
    config: Config, store: Store, request: EvaluationRequest, models: DrawnModels, base: DrawnBase
) -> Sequence[Drift | None]:
    """The drift of each edited model; None if the store does not know the inputs of the base."""
    if base.no_drift is not None:
        return [None] * len(request.edited)
    heldout = store.heldout() if config.heldout_prompts is not None else None
    return weight_drifts(store, heldout, models.weights[BASE], [models.weights[place] for place in request.edited])


def _compared(request: EvaluationRequest, features: Mapping[str, PictureFeatures], model: str) -> dict[str, ComparedPictures]:
    """The pictures of one model beside those of the base, by set of prompts."""
    found: dict[str, ComparedPictures] = {}
    for name, places in slices_of(request.sets).items():
        base, another, edited = (features[each].take(places) for each in (BASE, ANOTHER, model))
        found[name] = ComparedPictures(request.sets[name], base, another, edited)
    return found


def _compare(
    sets: Mapping[str, ComparedPictures],
    spaces: FeatureSpaces,
    *,
    instances: Mapping[str, Floats] | None,
    loss: InstanceLoss | None,
) -> dict[str, PictureComparison]:
    """One model beside the base on every set of prompts but those of an edit."""
    found: dict[str, PictureComparison] = {}
    for name, compared in sets.items():
        if name == SUBJECT:
            found[name] = compare_subject(compared, spaces, instances, loss)
        elif name == EARLIER:
            found[name] = compare_subject(compared, spaces, None, None)
        elif name not in OF_EDIT:
            found[name] = compare_pictures(compared, spaces)
    return found


def _verdicts(
    preservation: Mapping[str, PictureComparison], subject: SubjectComparison | None, edit: EditScores | None
) -> Iterator[Verdict]:
    """What was learned, if it was measured, the scores of an edit, and what was forgotten, for the sets that were drawn."""
    if subject is not None and (verdict := learned_verdict(subject)) is not None:
        yield verdict
    if edit is not None:
        yield from edit_verdicts(edit)
    advice = FORGOT_LESS if edit is None else EDIT_BETTER["specificity"]
    relative = {name: each.latent_mse_relative for name, each in preservation.items()}
    relative.pop(EARLIER, None)
    if relative:
        yield forgotten(relative, advice)
    if (before := preservation.get(EARLIER)) is not None:
        assert isinstance(before, SubjectComparison)
        shown = None if before.shown is None else (before.shown.base, before.shown.edited)
        yield earlier(before.relative_by_prompt, shown, advice)
