"""Was the subject learned? The verdict, from the best of what was measured of an edited model.

1. The share of the pictures in which the exact scorer of the embedded model finds its subject.
2. The likeness to the pictures that the subject was learned from, in DINO's space or else in CLIP's: 0 as the base's pictures,
   1 as these pictures among themselves.
3. The fall of the denoising loss on these pictures, on a scale that was found on constrained runs of the embedded model
   (docs/how-to/measure-forgetting.md).
"""

from collections.abc import Mapping

from nullbooth_cli.evaluation.answer import InstanceLoss, InstanceSimilarity, SubjectComparison
from nullbooth_cli.evaluation.verdict import EXACT, Verdict, learned

SPACES = ("dino", "clip")
BY_LOSS = "denoising loss on the pictures of the subject, which also falls by memorising"
NO_FALL, WHOLE_FALL = 0.25, 0.49  # the falls of the loss that count as 0 and as 1: docs/studies/instance_loss.py


def learned_verdict(subject: SubjectComparison) -> Verdict | None:
    """The verdict on a model; None if nothing was measured that says whether it learned."""
    if subject.shown is not None:
        return learned(subject.shown.edited, subject.shown.base, EXACT)
    for space in SPACES:
        if (share := _share(subject.instances or {}, space)) is not None:
            return learned(share, 0.0, f"{space.upper()} cosine with the pictures of the subject")
    if subject.instance_loss is not None:
        return learned_by_loss(subject.instance_loss)
    return None


def learned_by_loss(loss: InstanceLoss) -> Verdict:
    """The verdict of the loss alone: `NO_FALL` is 0, `WHOLE_FALL` is 1."""
    return learned((loss.fall - NO_FALL) / (WHOLE_FALL - NO_FALL), 0.0, BY_LOSS)


def _share(instances: Mapping[str, InstanceSimilarity], space: str) -> float | None:
    """How far an edited model has come from the base to the pictures themselves; None without a scale between these."""
    found = instances.get(space)
    if found is None or found.among is None or found.among <= found.base:
        return None
    return (found.edited - found.base) / (found.among - found.base)
