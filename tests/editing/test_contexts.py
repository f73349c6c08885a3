"""Other prompts that have what is edited: which, what they would become, and what is missing in them, in plain numpy."""

from dataclasses import replace

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.editing.contexts import within
from nullbooth_cli.editing.edit import plan_edit
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.model.words import has_word
from tests.support.builders import TEXT_ONLY, execute, small_config
from tests.support.edits import embedded, fresh

PRESERVED = ["a red circle on a blue background", "a green star on a white background", "Circle on a table", "circles"]
LONG = "a very long text of many words that goes on and on until it has more tokens than the model takes in, circle"
HELDOUT = ["a pink circle on a gray background", "a pink star on a gray background"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> nb.OpenStore:
    config = small_config(
        tmp_path_factory.mktemp("contexts") / "run.zarr",
        original_knowledge_prompts=[*PRESERVED, LONG],
        heldout_prompts=HELDOUT,
        project__relative_threshold=1e-6,
        collect__keep="moments",
        **TEXT_ONLY,
    )
    return nb.OpenStore(execute(config, "schedule", "collect", "covariance", "project"))


@pytest.mark.parametrize(
    ("source", "target", "text", "until", "becomes", "until_there"),
    [
        ("[circle]", "[square]", "a red Circle on a table", "a red Circle", "a red square on a table", "a red square"),
        ("[circle]", "", "a red circle on a table", "a red circle", "a red on a table", "a red"),
        ("[circle]", "", "circle on a table", "circle", "on a table", ""),
        ("[nurse]", "[male nurse]", "the nurse.", "the nurse", "the male nurse.", "the male nurse"),
        ("a [sks] dog", "a [cat] dog", "here a sks dog is", "here a sks", "here a cat dog is", "here a cat"),
        ("circle", "square", "a circle", None, "a square", None),
    ],
)
def test_a_prompt_with_the_target_in_place_of_the_source(
    source: str, target: str, text: str, until: str | None, becomes: str, until_there: str | None
) -> None:
    [(one, other)] = within(text, ((Marked.read(source), Marked.read(target)),))
    assert (one.text, one.until) == (text, until)
    assert (other.text, other.until) == (becomes, until_there)


def test_what_is_missing_is_that_of_these_prompts_from_the_subject_on(store: nb.OpenStore) -> None:
    """Where the word is cut off, in LONG, nothing can be told."""
    pipe = fresh()
    plan = plan_edit(pipe, store, {"[circle]": "[square]", "image of [circle]": "image of [square]"})
    found = {each.prompts: each for each in plan.report.in_context}
    assert [(each.concept, each.prompts, each.count) for each in found.values()] == [
        ("circle", "preserved", 3),
        ("circle", "held-out", 1),
    ]
    made = {"preserved": 0.0, "held-out": 0.0}
    whole = dict(made)
    for kind, texts in (("preserved", PRESERVED), ("held-out", HELDOUT)):
        for text in (text for text in texts if has_word(text, "circle")):
            first = 1 + text.lower().split().index("circle")
            k1, target = embedded(pipe, text)[first:], embedded(pipe, text.lower().replace("circle", "square"))[first:]
            for name, after in plan.after.items():
                w = pipe.unet.get_parameter(name).double().numpy()
                r = (target - k1) @ w.T
                made[kind] += float(np.sum(k1 @ (after.double().numpy() - w).T * r))
                whole[kind] += float(np.sum(r**2))
    for kind, each in found.items():
        assert each.missing == pytest.approx(1 - made[kind] / whole[kind], rel=1e-4)
    assert found["preserved"].missing > 0.9, "it is preserved"
    verdict = plan.report.verdicts[1]
    assert (verdict.question, verdict.is_good) == ("elsewhere", False)
    assert "3 preserved prompts with 'circle'" in verdict.text
    assert not plan.report.is_reached
    assert replace(plan.report, by_pair={"a": 0.1}, in_context=()).is_reached
    assert not replace(plan.report, by_pair={"a": 0.7}, in_context=()).is_reached


def test_a_prompt_that_is_edited_itself_and_a_new_word_have_no_context(store: nb.OpenStore) -> None:
    report = plan_edit(fresh(), store, {PRESERVED[0]: "a green star", "a sks": "a red star"}).report
    assert report.in_context == ()
    assert [verdict.question for verdict in report.verdicts] == ["missing", "drift"]
