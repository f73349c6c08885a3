"""What could predict before training whether a subject will be learned under a constraint: numbers for each run of the study.

dimension   of the null space
share       of the energy of the subject's captions in it: norm(P K)^2 / norm(K)^2 over all their tokens
ratio       share, over that of held-out prompts; `nullbooth train` prints it for the captions of its pictures, here it is for
            captions on all backgrounds
word        the share of the last token's change when the subject's word stands for another unknown one: where words can go
gradient    norm(G P) / norm(G) of the loss's gradient at the untouched k and v, on the subject's pictures
reach       norm(G P), not divided: how steep the loss falls within the null space
room        effective rank of the captions in the null space: (tr P C P)^2 / tr (P C P)^2
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from docs.studies.evidence_ground import Ground
from docs.studies.evidence_models import Models
from docs.studies.evidence_train import Run, Training
from nullbooth_cli.toy import world

BATCHES = 16  # of the gradient
CANDIDATES = ("dimension", "share", "ratio", "word", "gradient", "reach", "room")


def outlooks(models: Models, ground: Ground, training: Training, runs: Sequence[Run]) -> list[Mapping[str, float] | None]:
    """The numbers of each run that is constrained by a cut. Cost: a gradient of `BATCHES` batches for each."""
    if not any(run.way.is_cut for run in runs):
        return [None] * len(runs)
    gradients = training.gradients(BATCHES)
    squares = torch.stack([each.square().sum((1, 2)) for each in gradients.values()]).sum(0).tolist()
    inside = torch.stack([(each @ training.projectors).square().sum((1, 2)) for each in gradients.values()]).sum(0).tolist()
    found: list[Mapping[str, float] | None] = []
    for run, whole, part in zip(runs, squares, inside, strict=True):
        of_captions = _of_captions(models, ground, run) if run.way.is_cut else None
        found.append(of_captions and {**of_captions, "gradient": float(np.sqrt(part / whole)), "reach": float(np.sqrt(part))})
    return found


def _of_captions(models: Models, ground: Ground, run: Run) -> dict[str, float]:
    taught, projector = run.taught, ground.projector(run.way).double().numpy()

    def encoded(word: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        texts = [taught.caption(background, word, number) for number, background in enumerate(world.BACKGROUNDS)]
        return models.encode_plain(texts).flatten(0, 1).double().cpu().numpy()

    rows = encoded(taught.word)
    inside, change = rows @ projector, rows - encoded(taught.other_word)
    moment = inside.T @ inside
    share = float(np.square(inside).sum() / np.square(rows).sum())
    return {
        "dimension": float(round(np.trace(projector))),
        "share": share,
        "ratio": share / float(np.trace(projector @ ground.heldout) / np.trace(ground.heldout)),
        "word": float(np.square(change @ projector).sum() / np.square(change).sum()),
        "room": float(np.trace(moment) ** 2 / np.square(moment).sum()),
    }
