"""The rows of a table with every model of an evaluation side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from nullbooth_cli.evaluation.answer import (
    EDITED,
    PARAPHRASES,
    BaseAndEdited,
    EditScore,
    EditScores,
    EvaluationReport,
    InstanceLoss,
    PictureComparison,
    SubjectComparison,
)

# The labels of the fields of `FeatureDistances` that compare whole sets.
QUANTITIES = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance",
    "one_nn_accuracy": "1-NN accuracy",
    "jensen_shannon": "JS divergence, bits",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


REST = "rest"  # the prompts that specificity is of


@dataclass(frozen=True)
class SummaryRow:
    """One quantity on one set of prompts: `values` of another seed and of each edited model, None where not measured."""

    prompts: str
    quantity: str
    values: tuple[float | None, ...]


def summary(report: EvaluationReport) -> list[SummaryRow]:
    """The measured quantities, those of an edit first; one that no model has is left out."""
    edits = [model.edit for model in report.models if model.edit is not None]
    rows = list(_of_edits(edits)) if edits else []
    for name, baseline in report.baseline.items():
        compared = [baseline, *(model.on(name) for model in report.models)]
        of_set = (SummaryRow(name, label, tuple(values)) for label, values in _quantities(compared))
        rows += [row for row in of_set if any(value is not None for value in row.values)]
    return rows


def _of_edits(edits: Sequence[EditScores]) -> Iterator[SummaryRow]:
    """The scores of all models on the same edit; another seed has none."""
    scores: dict[str, list[EditScore | None]] = {
        EDITED: [each.efficacy for each in edits],
        PARAPHRASES: [each.generalisation for each in edits],
    }
    for name, found in scores.items():
        if of_all := [score for score in found if score is not None]:
            first = of_all[0]
            yield SummaryRow(name, "pictures", (None, *(score.pictures for score in of_all)))
            drawn = f"draw a target (base {first.base:.3g}, targets {first.target:.3g})"
            yield SummaryRow(name, drawn, (None, *(score.edited for score in of_all)))
            for space in first.nearer:
                yield SummaryRow(name, f"{space}: nearer to a target", (None, *(score.nearer[space] for score in of_all)))
    if rest := [each.specificity for each in edits if each.specificity is not None]:
        yield SummaryRow(REST, f"stay (base {rest[0].base:.3g})", (None, *(score.edited for score in rest)))
        for space in rest[0].nearer:
            label = f"{space}: nearer to the base than another seed"
            yield SummaryRow(REST, label, (None, *(score.nearer[space] for score in rest)))
    if edits[0].score is not None:
        yield SummaryRow(REST, "harmonic mean of all three", (None, *(each.score for each in edits)))


def _quantities(compared: Sequence[PictureComparison]) -> Iterator[tuple[str, list[float | None]]]:
    """(label, the value of each comparison); the first comparison decides which quantities there are."""
    yield "pictures", [each.pictures for each in compared]
    yield "latent MSE", [each.latent_mse for each in compared]
    yield "latent MSE, of another seed's", [each.latent_mse_relative for each in compared]
    yield "pixel MSE", [each.pixel_mse for each in compared]
    yield "PSNR, dB", [each.psnr for each in compared]
    yield "LPIPS", [each.lpips for each in compared]
    yield from _beside_base("captions drawn right", [each.captions_right for each in compared])
    yield from _beside_base("CLIP: cosine with the prompt", [each.text_alignment for each in compared])
    for space in compared[0].features:
        distances = [each.features[space] for each in compared]
        yield f"{space}: cosine with the base", [each.cosine for each in distances]
        for field, label in QUANTITIES.items():
            yield f"{space}: {label}", [getattr(each, field) for each in distances]
    of_subject = [each for each in compared if isinstance(each, SubjectComparison)]
    if of_subject:
        yield from _beside_base("subject drawn", [each.shown for each in of_subject])
        yield from _losses([each.instance_loss for each in of_subject])
    instances: list[Mapping[str, BaseAndEdited]] = [each.instances or {} for each in of_subject]
    for space in dict.fromkeys(chain.from_iterable(instances)):
        yield from _beside_base(f"{space}: cosine with the instances", [each[space] for each in instances])


def _losses(losses: Sequence[InstanceLoss | None]) -> Iterator[tuple[str, list[float | None]]]:
    """The loss on the instances; another seed has none, because it is the model of the base."""
    if found := [each for each in losses if each is not None]:
        label = f"denoising loss on the instances (base {found[0].base:.3g})"
        yield label, [None if each is None else each.edited for each in losses]


def _beside_base(label: str, values: Sequence[BaseAndEdited | None]) -> Iterator[tuple[str, list[float | None]]]:
    """The values of the edited models; that of the base, the same for all, goes into the label."""
    if values[0] is not None:
        yield f"{label} (base {values[0].base:.3g})", [None if each is None else each.edited for each in values]
