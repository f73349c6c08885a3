"""Which measure decides whether a subject was learned, and its scale."""

from dataclasses import replace

import pytest

from nullbooth_cli.evaluation.answer import BaseAndEdited, InstanceLoss, InstanceSimilarity, SubjectComparison
from nullbooth_cli.evaluation.learned import NO_FALL, WHOLE_FALL, learned_verdict
from tests.support.evaluations import comparison, of_subject

LOSS = InstanceLoss(base=0.4, edited=0.2, fall=(NO_FALL + WHOLE_FALL) / 2, standard_error=0.01, draws=512)
DINO, CLIP = InstanceSimilarity(0.2, 0.5, 0.6), InstanceSimilarity(0.5, 0.6, 0.9)

COSINE = "cosine with the pictures of the subject"
BY_LOSS = "denoising loss on the pictures of the subject, which also falls by memorising"


def measured(**changes: object) -> SubjectComparison:
    """A subject of which everything was measured, changed by keywords."""
    everything = {
        "shown": BaseAndEdited(0.1, 0.9),
        "instances": {"latents": DINO, "clip": CLIP, "dino": DINO},
        "instance_loss": LOSS,
    }
    return replace(of_subject(comparison(["s"], 1.0)), **{**everything, **changes})


@pytest.mark.parametrize(
    ("changes", "value", "base", "by"),
    [
        ({}, 0.9, 0.1, "exact scorer"),
        ({"shown": None}, 0.75, 0.0, f"DINO {COSINE}"),
        (
            {"shown": None, "instances": {"latents": DINO, "clip": CLIP}},
            0.25,
            0.0,
            f"CLIP {COSINE}",
        ),
        ({"shown": None, "instances": {"latents": DINO}}, 0.5, 0.0, BY_LOSS),
        ({"shown": None, "instances": None}, 0.5, 0.0, BY_LOSS),
    ],
    ids=["exact", "dino", "clip", "latents give no scale", "loss"],
)
def test_the_best_of_what_is_there_decides(changes: dict[str, object], value: float, base: float, by: str) -> None:
    found = learned_verdict(measured(**changes))
    assert found is not None
    assert (found.value, found.base, found.measured_by) == (pytest.approx(value), base, by)


@pytest.mark.parametrize("among", [None, 0.2, 0.1], ids=["one picture", "as the base", "less than the base"])
def test_a_space_without_a_scale_is_left_out(among: float | None) -> None:
    found = learned_verdict(measured(shown=None, instances={"dino": InstanceSimilarity(0.2, 0.5, among), "clip": CLIP}))
    assert found is not None
    assert found.measured_by.startswith("CLIP")


def test_nothing_measured_is_no_verdict() -> None:
    assert learned_verdict(measured(shown=None, instances={"latents": DINO}, instance_loss=None)) is None
