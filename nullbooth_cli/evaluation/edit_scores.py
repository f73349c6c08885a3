"""Scores of an edit, as the tables of the field have them: efficacy, generalisation and specificity, each a share of pictures.

ROME, MEMIT and AlphaEdit score edits of language models on COUNTERFACT (Meng et al., arXiv 2202.05262): how often the new answer
is likelier than the old one on edited prompts (efficacy) and on paraphrases (generalisation), and how often it is not on others
(specificity); the score is their harmonic mean. TIME (Orgad et al., arXiv 2303.08084) has the same three for pictures, with CLIP
to tell the old from the new. Here a picture is scored by the first of these that can be measured:

1. The exact scorer of the embedded model: the picture shows what the target names. Of other prompts, what the caption names.
2. DINO, else CLIP, else the latents: the picture is nearer to the base's picture of the target than to its picture of the edited
   prompt, all three from the same noise. One of another prompt is nearer to its own picture by the base than another seed is.

`nearer` has the second in every feature space. Its "clip text" is TIME's: CLIP's cosine with the target's text is higher than
that with the edited prompt.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.evaluation.answer import (
    EARLIER,
    EDITED,
    PARAPHRASES,
    SUBJECT,
    EditedPicture,
    EditScore,
    EditScores,
    Specificity,
)
from nullbooth_cli.evaluation.compare import ComparedPictures, PictureFeatures, squared_differences
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.metrics import cosines
from nullbooth_cli.evaluation.request import OF_EDIT, target_slices
from nullbooth_cli.evaluation.verdict import EXACT, SET_NAMES, Share, Verdict, edited

SPACES = ("dino", "clip", "latents")  # the first that exists counts
LATENTS, CLIP_TEXT = "latents", "clip text"
EVERY = slice(None)
Floats = NDArray[np.floating]
Alignment = Callable[[NDArray[np.float32], list[str]], NDArray[np.float32]]


def score_edit(
    sets: Mapping[str, ComparedPictures], targets: PictureFeatures, spaces: FeatureSpaces, num_left_out: int
) -> EditScores:
    """The scores of an edit, from the pictures of a model beside the base by set of prompts.

    `targets` are the base's pictures `of_targets` of the edited prompts and their paraphrases, one after the other.
    """
    scores = {}
    for name, places in target_slices({name: compared.specs for name, compared in sets.items()}).items():
        of_set = targets.take(slice(places[0].start, places[-1].stop))
        scores[name] = score_prompts(sets[name], of_set, spaces)
    rest = [
        specificity(name, compared, num_left_out) for name, compared in sets.items() if name not in (SUBJECT, EARLIER, *OF_EDIT)
    ]
    return EditScores(
        efficacy=scores[EDITED],
        generalisation=scores.get(PARAPHRASES),
        specificity=min(rest, key=lambda each: each.edited, default=None),
    )


def edit_verdicts(scores: EditScores) -> Iterator[Verdict]:
    """A verdict on each score that was measured."""
    of_prompts: tuple[tuple[Share, EditScore | None], ...] = (
        ("efficacy", scores.efficacy),
        ("generalisation", scores.generalisation),
    )
    for question, score in of_prompts:
        if score is not None:
            yield edited(question, score.edited, score.base, score.measured_by)
    if (rest := scores.specificity) is not None:
        where = f"{rest.measured_by}, on {SET_NAMES.get(rest.prompts, rest.prompts)} prompts"
        yield edited("specificity", rest.edited, rest.base, where)


def score_prompts(compared: ComparedPictures, targets: PictureFeatures, spaces: FeatureSpaces) -> EditScore:
    """The score of edited prompts, or of paraphrases; `targets` are the base's pictures `of_targets` of these specs alone."""
    base, new = compared.base, compared.edited
    of_target = np.repeat(np.arange(len(compared.specs)), [len(spec.targets) for spec in compared.specs])
    near = {}
    for name in base.vectors:
        to_targets = _least(distances(name, new, targets, of_target), of_target)
        near[name] = to_targets < distances(name, new, base)
    shares = {name: float(found.mean()) for name, found in near.items()}
    if spaces.alignment is not None:
        shares[CLIP_TEXT] = _share_by_text(compared, of_target, spaces.alignment)
    if new.right is not None and not np.isnan(new.right).all():
        measured_by, reached, before, of_targets = EXACT, new.right, _mean(base.right), _mean(targets.right)
    else:
        space = next(name for name in SPACES if name in near)
        measured_by, reached, before, of_targets = f"nearer to the target in {in_words(space)}", near[space] * 1.0, 0.0, 1.0
    changes = squared_differences(base.drawn.latents, new.drawn.latents)
    return EditScore(
        pictures=len(compared.specs),
        measured_by=measured_by,
        edited=_mean(reached),
        base=before,
        target=of_targets,
        nearer=shares,
        baseline=float(squared_differences(base.drawn.latents, compared.another.drawn.latents).mean()),
        by_picture=tuple(
            EditedPicture(
                id=spec.prompt.id,
                number=spec.number,
                text=spec.prompt.text,
                latent_mse=float(change),
                targets=spec.targets,
                reached=None if np.isnan(is_reached) else bool(is_reached),
            )
            for spec, change, is_reached in zip(compared.specs, changes, reached, strict=True)
        ),
    )


def specificity(name: str, compared: ComparedPictures, num_left_out: int) -> Specificity:
    """The score of other prompts, those of the set `name`."""
    base, new = compared.base, compared.edited
    near = {space: distances(space, new, base) < distances(space, compared.another, base) for space in base.vectors}
    if new.right is not None and not np.isnan(new.right).all():
        measured_by, stayed, before = EXACT, new.right, _mean(base.right)
    else:
        space = next(each for each in SPACES if each in near)
        measured_by, stayed, before = f"nearer than another seed in {in_words(space)}", near[space] * 1.0, 1.0
    return Specificity(
        prompts=name,
        pictures=len(compared.specs),
        left_out=num_left_out,
        measured_by=measured_by,
        edited=_mean(stayed),
        base=before,
        nearer={space: float(found.mean()) for space, found in near.items()},
    )


def distances(space: str, x: PictureFeatures, y: PictureFeatures, rows: NDArray[np.intp] | slice = EVERY) -> Floats:
    """How far the pictures of `x`, or the `rows` of them, are from those of `y`, one by one, `[N]`.

    The mean squared difference of the latents; in any other space 1 minus the cosine.
    """
    if space == LATENTS:
        return squared_differences(x.drawn.latents[rows], y.drawn.latents)
    return 1 - cosines(x.vectors[space][rows], y.vectors[space])


def in_words(space: str) -> str:
    """The name of a feature space, for a reader."""
    return f"the {space}" if space == LATENTS else space.upper()


def _least(values: Floats, of: NDArray[np.intp]) -> Floats:
    """The least of the values of each picture; value i belongs to the picture `of[i]`."""
    least = np.full(of[-1] + 1, np.inf)
    np.minimum.at(least, of, values)
    return least


def _share_by_text(compared: ComparedPictures, of_target: NDArray[np.intp], align: Alignment) -> float:
    """The share of the pictures whose cosine with the text of a target is higher than that with the edited prompt."""
    vectors = compared.edited.vectors["clip"]
    texts = [target for spec in compared.specs for target in spec.targets]
    to_targets = -_least(-align(vectors[of_target], texts), of_target)
    return float((to_targets > align(vectors, [spec.prompt.text for spec in compared.specs])).mean())


def _mean(values: Floats | None) -> float:
    assert values is not None  # the exact scorer has read every picture, or none
    return float(np.nanmean(values))
