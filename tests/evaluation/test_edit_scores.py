"""The scores of an edit, held against the same computed plainly."""

from collections.abc import Sequence

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation import edit_scores
from nullbooth_cli.evaluation.answer import EditScore, EditScores, Specificity
from nullbooth_cli.evaluation.compare import ComparedPictures, PictureFeatures
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec

PAIRS = {"a": ("b",), "c": ("d", "e"), "f": ("",)}
SPECS = tuple(PictureSpec(Prompt(source), targets=targets) for source, targets in PAIRS.items())
OF = [0, 1, 1, 2]  # which spec each target is of


def features(seed: int, count: int, right: Sequence[float] | None = None, **spaces: int) -> PictureFeatures:
    """Random pictures, in spaces of some dimensions beside their latents."""
    rng = np.random.default_rng(seed)
    drawn = Pictures(rng.integers(0, 256, (count, 8, 8, 3), np.uint8), rng.normal(size=(count, 2, 4, 4)).astype(np.float32))
    vectors = {"latents": drawn.pooled()} | {name: rng.normal(size=(count, dim)) for name, dim in spaces.items()}
    of_right = None if right is None else np.array(right, float)
    return PictureFeatures(drawn=drawn, vectors=vectors, right=of_right, shown=None, alignment=None)


def compared(specs: Sequence[PictureSpec] = SPECS, **given: PictureFeatures) -> ComparedPictures:
    of = {name: given.get(name, features(seed, len(specs))) for seed, name in enumerate(("base", "another", "edited"))}
    return ComparedPictures(specs, **of)


def mse(x: PictureFeatures, i: int, y: PictureFeatures, j: int) -> float:
    return float(np.square(x.drawn.latents[i].astype(float) - y.drawn.latents[j]).mean())


def cosine(x: PictureFeatures, i: int, y: PictureFeatures, j: int) -> float:
    a, b = x.vectors["clip"][i], y.vectors["clip"][j]
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_nearer_to_a_target_than_to_the_source() -> None:
    base, edited, targets = (features(seed, count, clip=3) for seed, count in ((0, 3), (2, 3), (3, 4)))
    found = edit_scores.score_prompts(compared(base=base, edited=edited), targets, FeatureSpaces())
    latents, clip = [], []
    for i in range(3):
        rows = [row for row, of in enumerate(OF) if of == i]
        latents.append(min(mse(edited, i, targets, row) for row in rows) < mse(edited, i, base, i))
        clip.append(max(cosine(edited, i, targets, row) for row in rows) > cosine(edited, i, base, i))
    assert 0 < sum(latents) < 3 or 0 < sum(clip) < 3, "no trivial case"
    assert found.nearer == {"latents": pytest.approx(np.mean(latents)), "clip": pytest.approx(np.mean(clip))}
    assert (found.measured_by, found.base, found.target) == ("nearer to the target in CLIP", 0.0, 1.0)
    assert found.edited == pytest.approx(np.mean(clip))
    assert [(each.text, each.targets, each.reached) for each in found.by_picture] == [
        (source, targets, reached) for (source, targets), reached in zip(PAIRS.items(), clip, strict=True)
    ]
    assert [each.latent_mse for each in found.by_picture] == pytest.approx([mse(base, i, edited, i) for i in range(3)])
    assert found.baseline == pytest.approx(np.mean([mse(base, i, features(1, 3), i) for i in range(3)]))


def test_the_base_itself_reaches_nothing_and_its_targets_everything() -> None:
    base, targets = features(0, 3), features(3, 4)
    assert edit_scores.score_prompts(compared(base=base, edited=base), targets, FeatureSpaces()).edited == 0
    as_targets = PictureFeatures(
        drawn=Pictures(targets.drawn.images[[0, 1, 3]], targets.drawn.latents[[0, 1, 3]]),
        vectors={"latents": targets.vectors["latents"][[0, 1, 3]]},
        right=None,
        shown=None,
        alignment=None,
    )
    found = edit_scores.score_prompts(compared(base=base, edited=as_targets), targets, FeatureSpaces())
    assert (found.edited, found.measured_by) == (1, "nearer to the target in the latents")


def test_the_exact_scorer_goes_first_and_leaves_out_what_names_nothing() -> None:
    nan = float("nan")
    base, edited = features(0, 3, [0, 1, nan], dino=2), features(2, 3, [1, 1, nan], dino=2)
    targets = features(3, 4, [1, 0, 1, nan], dino=2)
    found = edit_scores.score_prompts(compared(base=base, edited=edited), targets, FeatureSpaces())
    assert (found.measured_by, found.edited, found.base, found.target) == ("exact scorer", 1.0, 0.5, pytest.approx(2 / 3))
    assert [each.reached for each in found.by_picture] == [True, True, None]
    assert set(found.nearer) == {"latents", "dino"}
    blind = features(2, 3, [nan] * 3, dino=2)
    found = edit_scores.score_prompts(compared(base=base, edited=blind), targets, FeatureSpaces())
    assert found.measured_by == "nearer to the target in DINO"


def test_clip_tells_source_and_target_by_their_texts() -> None:
    """As TIME does: the cosine with a target's text is higher than that with the prompt."""
    edited = features(2, 3, clip=3)
    texts = {text: np.random.default_rng(i).normal(size=3) for i, text in enumerate(("a", "b", "c", "d", "e", "f", ""))}
    spaces = FeatureSpaces(alignment=lambda vectors, of: np.array([v @ texts[t] for v, t in zip(vectors, of, strict=True)]))
    base, targets = features(0, 3, clip=3), features(3, 4, clip=3)
    found = edit_scores.score_prompts(compared(base=base, edited=edited), targets, spaces)
    v = edited.vectors["clip"]
    expected = [
        max(v[i] @ texts[target] for target in targets_of) > v[i] @ texts[source]
        for i, (source, targets_of) in enumerate(PAIRS.items())
    ]
    assert found.nearer["clip text"] == pytest.approx(np.mean(expected))


class TestSpecificity:
    specs = tuple(PictureSpec(Prompt(str(i))) for i in range(6))

    def test_nearer_to_the_base_than_another_seed(self) -> None:
        base, another, edited = (features(seed, 6) for seed in (0, 1, 2))
        found = edit_scores.specificity("heldout", compared(self.specs, base=base, another=another, edited=edited), 4)
        expected = [mse(base, i, edited, i) < mse(base, i, another, i) for i in range(6)]
        assert 0 < sum(expected) < 6
        assert found.edited == pytest.approx(np.mean(expected))
        assert (found.prompts, found.pictures, found.left_out, found.base) == ("heldout", 6, 4, 1.0)
        assert found.measured_by == "nearer than another seed in the latents"
        assert edit_scores.specificity("heldout", compared(self.specs, base=base, another=another, edited=base), 0).edited == 1

    def test_the_exact_scorer(self) -> None:
        nan = float("nan")
        base, edited = features(0, 6, [1, 1, 1, 1, 0, nan]), features(2, 6, [1, 0, 0, 1, 0, nan])
        found = edit_scores.specificity("given", compared(self.specs, base=base, edited=edited), 0)
        assert (found.measured_by, found.edited, found.base) == ("exact scorer", 0.4, 0.8)


def test_the_sets_of_an_evaluation() -> None:
    """Targets are shared out to edited prompts and paraphrases; the worst set of other prompts counts, none of the subject's."""
    rest = (PictureSpec(Prompt("x")), PictureSpec(Prompt("y")))
    sets = {
        "preserved": compared(rest, base=features(0, 2, [1, 1]), edited=features(2, 2, [1, 0])),
        "heldout": compared(rest, base=features(0, 2, [1, 1]), edited=features(2, 2, [1, 1])),
        "earlier": compared(rest, base=features(0, 2, [1, 1]), edited=features(2, 2, [0, 0])),
        "edited": compared(SPECS[:1], base=features(0, 1, [0]), edited=features(2, 1, [1])),
        "paraphrases": compared(SPECS[1:], base=features(0, 2, [0, 0]), edited=features(2, 2, [1, 0])),
        "subject": compared(rest, base=features(0, 2, [1, 1]), edited=features(2, 2, [0, 0])),
    }
    found = edit_scores.score_edit(sets, features(3, 4, [0, 1, 1, 1]), FeatureSpaces(), 7)
    assert (found.efficacy.edited, found.efficacy.target) == (1.0, 0.0)
    assert found.generalisation is not None
    assert (found.generalisation.edited, found.generalisation.target) == (0.5, 1.0)
    assert found.specificity is not None
    assert (found.specificity.prompts, found.specificity.edited, found.specificity.left_out) == ("preserved", 0.5, 7)
    assert found.score == pytest.approx(3 / (1 + 2 + 2))
    texts = [verdict.text for verdict in edit_scores.edit_verdicts(found)]
    assert texts == [
        "efficacy 1.00 of 1: high (exact scorer; base 0.00)",
        "generalisation 0.50 of 1: fair (exact scorer; base 0.00)",
        "specificity 0.50 of 1: low (exact scorer, on preserved prompts; base 1.00)",
    ]


def share(value: float) -> EditScore:
    return EditScore(pictures=1, measured_by="x", edited=value, base=0.0, target=1.0, nearer={}, baseline=1.0, by_picture=())


def rest(value: float) -> Specificity:
    return Specificity(prompts="given", pictures=1, left_out=0, measured_by="x", edited=value, base=1.0, nearer={})


def test_the_score_is_the_harmonic_mean_of_all_three() -> None:
    assert EditScores(efficacy=share(0.5), generalisation=share(0.25), specificity=rest(1.0)).score == pytest.approx(3 / 7)
    assert EditScores(efficacy=share(0.5), generalisation=share(0.0), specificity=rest(1.0)).score == 0
    assert EditScores(efficacy=share(0.5), generalisation=None, specificity=rest(1.0)).score is None
    assert EditScores(efficacy=share(0.5), generalisation=share(0.5), specificity=None).score is None
