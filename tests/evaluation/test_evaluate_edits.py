"""An edited model that has the record of its edit, and a base that is another model than the store's."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nullbooth_cli as nb
from nullbooth_cli.collect import open_model
from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.evaluate import Evaluation, evaluate
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.progress import Note
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.toy import FOLDER
from tests.support.builders import PROMPTS
from tests.support.cli import nullbooth
from tests.support.keys import keys_of

PAIRS = {"[red] circle": "green star", "a zwx thing": ["a red ring", ""]}


@pytest.fixture(scope="module")
def edited(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `free`, as if an edit had made it."""
    place = tmp_path_factory.mktemp("edits") / "edited"
    shutil.copytree(models / "free", place)
    (place / "edit.json").write_text(json.dumps({"pairs": PAIRS, "after": None, "store": {"url": "run.zarr"}}))
    return place


@pytest.fixture(scope="module")
def evaluation(run: Any, edited: Path) -> Evaluation:
    return evaluate(nb.OpenStore(run[1]), edited, num_prompts=2, subject_images=1, device="cpu")


def drawn_by_hand(run: Any, place: Path, texts: Sequence[str], start: PictureSpec) -> NDArray[np.float32]:
    """The latents of texts, all from the noise of one picture, by a pipeline as its users call it."""
    config, store = run
    pipe: Any = load_edited(config, str(place), "cpu")
    open_model.follow_schedule(config, store.schedule(), pipe)
    noise = [torch.Generator("cpu").manual_seed(config.collect.seed + start.noise(0)) for _ in texts]
    made = pipe(list(texts), num_inference_steps=4, guidance_scale=4.0, generator=noise, output_type="latent")
    return np.asarray(made.images)


def test_prompts_with_an_edited_one_are_paraphrases_and_not_the_rest(evaluation: Evaluation) -> None:
    sets = {name: [spec.prompt.text for spec in specs] for name, specs in evaluation.sets.items()}
    assert len(sets["preserved"]) == 2
    assert set(sets["preserved"]) < set(PROMPTS[1:5])
    assert sets["edited"] == ["red circle", "a zwx thing"]
    assert len(sets["paraphrases"]) == 2
    assert list(evaluation.report.preservation) == ["preserved", "heldout"]
    assert evaluation.report.edit is not None
    assert evaluation.report.edit.specificity is not None
    assert evaluation.report.edit.specificity.left_out == 1


def test_pictures_are_scored_from_one_noise(evaluation: Evaluation, run: Any, edited: Path) -> None:
    """`a zwx thing` by the base and the edited model, and its two targets by the base, are all from its own noise."""
    spec, targets, edit = PictureSpec(Prompt("a zwx thing")), evaluation.targets, evaluation.report.edit
    assert targets is not None
    assert edit is not None
    base, *of_targets = drawn_by_hand(run, FOLDER, ["a zwx thing", "a red ring", ""], spec)
    [new] = drawn_by_hand(run, edited, ["a zwx thing"], spec)
    np.testing.assert_allclose(targets.latents[1:3], of_targets, rtol=1e-3, atol=1e-3)
    second = edit.efficacy.by_picture[1]
    assert (second.text, second.targets) == ("a zwx thing", ("a red ring", ""))
    assert second.latent_mse == pytest.approx(np.square(base - new).mean(), rel=1e-3)


def test_the_answer(evaluation: Evaluation) -> None:
    report = evaluation.report
    assert [verdict.question for verdict in report.verdicts] == ["efficacy", "generalisation", "specificity", "forgotten"]
    assert {verdict.measured_by.partition(",")[0] for verdict in report.verdicts[:3]} == {"exact scorer"}
    assert not {"subject", "learned"} & set(report.not_measured), "an edit teaches no subject"
    document = to_json(report)
    picture = "{id number text latent_mse targets[] reached}"
    score = f"{{pictures measured_by edited base target nearer{{latents}} baseline by_picture[{picture}]}}"
    assert keys_of(document["edit"]) == (
        f"{{efficacy{score} generalisation{score} "
        "specificity{prompts pictures left_out measured_by edited base nearer{latents}} score}"
    )
    assert list(document)[list(document).index("subject") + 1] == "edit"


def test_the_command_takes_a_file_and_writes_the_targets(evaluation: Evaluation, run: Any, models: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("pairs.yaml", "prompts.txt", "paraphrases.yaml")]
    for file, text in zip(files, ("'[red] circle': green star\na zwx thing: a red ring", PROMPTS[1], "a: b"), strict=True):
        file.write_text(text + "\n")
    named = [
        word for flag, file in zip(("edits", "prompts", "paraphrases"), files, strict=True) for word in (f"--{flag}", str(file))
    ]
    options = ("-s", str(run[1].path), "--num-prompts", "2", "--subject-images", "1", "--images", str(tmp_path), "--json")
    shown = nullbooth("evaluate", str(models / "free"), *named, *options)
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    found, expected = (of["edit"]["efficacy"]["by_picture"] for of in (document, to_json(evaluation.report)))
    assert found[0] == expected[0] | {"latent_mse": pytest.approx(expected[0]["latent_mse"], rel=1e-3)}
    assert (found[1]["text"], found[1]["targets"]) == ("a zwx thing", ["a red ring"])
    assert [each["text"] for each in document["edit"]["generalisation"]["by_picture"]] == ["a"]
    names = {path.name.partition("-0-")[2] for path in (tmp_path / "edited").iterdir()}
    assert names == {"base.png", "another-seed.png", "edited.png", "target.png"}


def test_another_base_draws_what_it_was_edited_to_and_its_inputs_are_not_known(run: Any, models: Path, edited: Path) -> None:
    notes: list[str] = []

    def listen(event: nb.Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    place = models / "constrained"
    found = evaluate(
        nb.OpenStore(run[1]), place, base=edited, prompts=PROMPTS[:1], subject_images=1, device="cpu", on_event=listen
    )
    report, reason = found.report, f"has not recorded the inputs of {edited}"
    assert (report.base, report.drift, report.edit) == (str(edited), None, None)
    assert reason in report.not_measured["drift"]
    assert [note for note in notes if reason in note]
    [expected] = drawn_by_hand(run, edited, PROMPTS[:1], PictureSpec(Prompt(PROMPTS[0])))
    np.testing.assert_allclose(found.drawn["base"].latents[0], expected, rtol=1e-3, atol=1e-3)
    assert list(report.preservation) == ["given", "earlier"]
    assert [each.text for each in report.preservation["earlier"].by_picture] == ["red circle", "a zwx thing"]
    values = {verdict.question: verdict.value for verdict in report.verdicts}
    assert values["forgotten"] == report.preservation["given"].latent_mse_relative
    before = report.preservation["earlier"]
    changes = np.array([each.latent_mse for each in before.by_picture])
    np.testing.assert_allclose(values["earlier"], before.latent_mse_relative * changes.max() / changes.mean(), rtol=1e-9)


def test_a_base_that_the_store_knows_has_a_drift(run: Any, models: Path) -> None:
    report = evaluate(nb.OpenStore(run[1]), models / "free", base=FOLDER, prompts=PROMPTS[:1], device="cpu").report
    assert report.drift is not None
    assert report.drift.largest > 0
    assert "drift" not in report.not_measured
