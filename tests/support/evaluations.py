"""Evaluations made by hand, without a model: what pages, tables and summaries are tested with."""

from collections.abc import Mapping, Sequence

import numpy as np

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.answer import (
    BaseAndEdited,
    Drift,
    EditedPicture,
    EditScore,
    EditScores,
    EvaluationReport,
    FeatureDistances,
    InstanceSimilarity,
    ModelAnswer,
    PictureChange,
    PictureComparison,
    Specificity,
    SubjectComparison,
    WeightDrift,
)
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE
from nullbooth_cli.evaluation.evaluate import Evaluation
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec
from nullbooth_cli.evaluation.summary import QUANTITIES
from nullbooth_cli.evaluation.verdict import forgotten, learned

WEIGHT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_{}.weight"


def comparison(texts: Sequence[str], change: float) -> PictureComparison:
    """Pictures of prompts of which the i-th changed by `change * (i + 1)`; everything else is made up."""
    return PictureComparison(
        pictures=len(texts),
        latent_mse=change,
        latent_mse_relative=change / 2,
        pixel_mse=0.0,
        psnr=None,
        lpips=None,
        captions_right=BaseAndEdited(1.0, 0.25),
        text_alignment=None,
        features={"latents": FeatureDistances(dim=4, cosine=0.5, **dict.fromkeys(QUANTITIES, 0.125))},
        by_picture=tuple(PictureChange(Prompt(text).id, 0, text, change * (i + 1)) for i, text in enumerate(texts)),
    )


def of_subject(found: PictureComparison, instances: dict[str, InstanceSimilarity] | None = None) -> SubjectComparison:
    """A comparison as one of the subject."""
    return SubjectComparison(**vars(found), shown=BaseAndEdited(0.0, 0.5), instances=instances, instance_loss=None)


def edit_score(pairs: Mapping[str, str], edited: float) -> EditScore:
    """Edited prompts whose i-th picture changed by i + 1; everything else is made up."""
    return EditScore(
        pictures=len(pairs),
        measured_by="exact scorer",
        edited=edited,
        base=0.125,
        target=1.0,
        nearer={"latents": 0.75},
        baseline=4.0,
        by_picture=tuple(
            EditedPicture(id=Prompt(text).id, number=0, text=text, latent_mse=i + 1.0, targets=(target,), reached=True)
            for i, (text, target) in enumerate(pairs.items())
        ),
    )


def edit_scores(pairs: Mapping[str, str], edited: float) -> EditScores:
    """The scores of an edit, without paraphrases."""
    rest = Specificity(
        prompts="preserved", pictures=2, left_out=0, measured_by="x", edited=0.5, base=0.875, nearer={"latents": 0.25}
    )
    return EditScores(efficacy=edit_score(pairs, edited), generalisation=None, specificity=rest)


def drift(scale: float = 1.0) -> Drift:
    """Two protected weights and one unprotected parameter that changed."""
    weights = tuple(WeightDrift(WEIGHT.format(of), 0.1 * scale, 0.3) for of in ("q", "k"))
    return Drift(largest=0.1, largest_heldout=0.3, protected_changed=2, unprotected_changed=("unet.<i>bias",), weights=weights)


def report(texts: Sequence[str], places: Sequence[str], changes: Sequence[float]) -> EvaluationReport:
    """One answer for each place, on the set `preserved` of these texts and on two pictures of a subject."""
    subject = ["s", "s"]
    first, *others = (
        ModelAnswer(
            edited=place,
            verdicts=(learned(change, 0.0, "exact scorer"), forgotten({"preserved": change / 2})),
            preservation={"preserved": comparison(texts, change)},
            subject=of_subject(comparison(subject, change)),
            drift=drift(i + 1),
        )
        for i, (place, change) in enumerate(zip(places, changes, strict=True))
    )
    return EvaluationReport(
        store="run.zarr",
        base="toy",
        edited=first.edited,
        verdicts=first.verdicts,
        dtype="float32",
        num_steps=4,
        guidance_scale=4.0,
        preservation=first.preservation,
        subject=first.subject,
        baseline={"preserved": comparison(texts, 2.0), "subject": of_subject(comparison(subject, 2.0))},
        against=tuple(others),
        not_measured={"clip": "no CLIP weights at <here>"},
        drift=first.drift,
    )


def evaluation(texts: Sequence[str], places: Sequence[str], changes: Sequence[float]) -> Evaluation:
    """The same with random pictures of 40 x 60; a model that did not change has the pictures of the base."""
    sets = {
        "preserved": tuple(PictureSpec(Prompt(text)) for text in texts),
        "subject": (PictureSpec(Prompt("s"), 0), PictureSpec(Prompt("s"), 1)),
    }
    rng, count = np.random.default_rng(0), len(texts) + 2
    images = {name: rng.integers(0, 256, (count, 40, 60, 3), np.uint8) for name in (BASE, ANOTHER, *places)}
    images |= {place: images[BASE].copy() for place, change in zip(places, changes, strict=True) if change == 0}
    drawn = {name: Pictures(of, np.zeros((count, 1, 1, 1), np.float32)) for name, of in images.items()}
    return Evaluation(report(texts, places, changes), sets, drawn)
