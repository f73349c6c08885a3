"""From pictures to a report: what is written, what resumes, what is refused."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import nullbooth_cli as nb
from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.evaluation import instance_loss
from nullbooth_cli.evaluation.draw_models import DrawnModels
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.teaching import request
from nullbooth_cli.teaching.plan import plan_teaching
from nullbooth_cli.teaching.teach import teach_events
from nullbooth_cli.training import dreambooth, setup
from tests.support.builders import ROOT
from tests.support.teaching import FAST, SETTINGS
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import changed, weights

Taught = tuple[nb.TeachReport, list[Event]]


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_both_questions_are_answered(taught: Taught) -> None:
    report, _ = taught
    assert [verdict.question for verdict in report.verdicts] == ["learned", "forgotten"]
    learned, forgotten = report.verdicts
    assert learned.measured_by == "exact scorer"
    assert learned.value == 0.0  # two steps teach nothing
    assert 0 < forgotten.value < 0.01
    assert report.steps == 2
    assert report.prompt == "a photo of sks circle on a red background"
    assert report.verdicts[1].text in (Path(report.output) / "README.md").read_text()  # the model card
    assert report.largest_drift is not None
    assert 0 < report.largest_drift < 0.1


def test_everything_is_an_ordinary_file(taught: Taught) -> None:
    report, _ = taught
    output = Path(report.output)
    assert Path(report.result) == output / "pipeline"
    store = nb.open_store(report.store)
    assert store.prompts()[0] in (output / "prompts/preserved.txt").read_text().splitlines()
    assert nb.load_config(output / "nullbooth.yaml").store == report.store
    with Image.open(report.sheet) as sheet:
        assert sheet.width > 100
    assert "<html" in Path(report.page).read_text(encoding="utf-8")
    document = json.loads((output / "evaluation.json").read_text())
    assert [verdict["value"] for verdict in document["report"]["verdicts"]] == [each.value for each in report.verdicts]


def test_steps_are_seen_in_order(taught: Taught) -> None:
    stages = list(dict.fromkeys(event.stage for event in taught[1] if isinstance(event, Progress)))
    assert [stage for stage in stages if stage in ("collect", "covariance", "project", "train", "evaluate")] == [
        "collect",
        "covariance",
        "project",
        "train",
        "evaluate",
    ]


def test_again_loads_and_draws_nothing(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work is done again")

    monkeypatch.setattr(dreambooth, "train", never)
    monkeypatch.setattr(DrawnModels, "draw_base", never)
    events: list[Event] = []
    assert nb.teach(output=taught[0].output, on_event=events.append) == taught[0]
    assert "training is complete: the result has 2 steps" in notes(events)
    assert "evaluation is complete" in notes(events)


@pytest.mark.parametrize("stage", ["collect", "train", "evaluate"])
def test_stopped_anywhere_it_resumes_to_the_same(taught: Taught, photos: Path, tmp_path: Path, stage: str) -> None:
    output, given = tmp_path / "out", {"pictures": str(photos), **FAST}
    with closing(teach_events(given, str(output), device="cpu")) as events:
        next(event for event in events if isinstance(event, Progress) and event.stage == stage)
    report = nb.teach(photos, output=output, device="cpu", **FAST)
    figures, expected = ([verdict.value for verdict in each.verdicts] for each in (report, taught[0]))
    assert figures == pytest.approx(expected, rel=1e-2)  # two steps move the model by little more than rounding
    resumed, whole, base = (weights(folder) for folder in (report.result, taught[0].result, toy.FOLDER))
    for name in changed(report.result):  # with a constraint a resumed run agrees within rounding
        assert torch.linalg.norm(resumed[name] - whole[name]) < 1e-2 * torch.linalg.norm(whole[name] - base[name]), name


def test_a_page_that_is_gone_is_drawn_again(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(taught[0].output).parent)
    Path(taught[0].page).unlink()
    assert nb.teach(output=taught[0].output, device="cpu") == taught[0]
    assert Path(taught[0].page).exists()


def test_nothing_is_left_in_the_plan_of_what_is_done(taught: Taught) -> None:
    report, _ = taught
    done = plan_teaching({}, report.output, device="cpu")
    assert (done.steps, done.steps_done, done.train_seconds, done.pictures, done.bytes_needed) == (2, 2, 0.0, 0, 0)
    assert all(stage.units_done == stage.units_total > 0 for stage in done.stages.values())


def test_an_earlier_checkpoint_that_was_chosen_is_measured(taught: Taught, tmp_path: Path) -> None:
    shutil.copytree(taught[0].output, tmp_path / "out")
    nb.teach(output=tmp_path / "out", device="cpu")  # its files name their new place
    recipe = load_settings(Recipe, tmp_path / "out/train.yaml")
    ready = setup.set_up(recipe, "cpu", at=1)
    dreambooth.restore(ready)
    dreambooth.finish(ready)
    events: list[Event] = []
    report = nb.teach(output=tmp_path / "out", device="cpu", on_event=events.append)
    assert report.steps == 1
    assert "training is complete: the result has 1 step of 2: an earlier checkpoint was chosen" in notes(events)
    assert report.verdicts[1].value < taught[0].verdicts[1].value
    assert nb.teach(output=tmp_path / "out", device="cpu") == report
    planned = plan_teaching({}, str(tmp_path / "out"), device="cpu")
    assert (planned.train_seconds, planned.pictures) == (0, 0)


def test_another_request_is_refused(taught: Taught) -> None:
    with pytest.raises(ConfigError, match="made for another request"):
        nb.teach(output=taught[0].output, word="zwx")


def test_a_mistake_leaves_nothing_behind(tmp_path: Path, photos: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/notes.pdf").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"notes\.pdf"):
        nb.teach(tmp_path / "photos", output=tmp_path / "out", device="cpu", **FAST)
    assert not (tmp_path / "out").exists()
    (tmp_path / "photos/notes.pdf").unlink()
    assert nb.teach(tmp_path / "photos", output=tmp_path / "out", device="cpu", **FAST).steps == 2


@pytest.mark.parametrize(
    ("name", "method", "result"),
    [("sd1", None, "pipeline"), ("sd1", "lora", "lora"), ("sdxl", None, "lora"), ("flux", None, "lora")],
)
def test_a_model_of_the_shape_of_those_that_people_use(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str | None, result: str
) -> None:
    """With random weights and a word of several tokens: from pictures to two answers, a page and a sheet."""
    small = replace(request.PHOTOGRAPHS, preserved=(), num_prompts=1, subject_images=1, scenes=("in a bucket",))
    monkeypatch.setattr(request, "PHOTOGRAPHS", small)
    monkeypatch.setattr(instance_loss, "DRAWS", 4)
    (tmp_path / "mine.txt").write_text("".join(f"a photo of {thing}\n" for thing in "abcdefghijk"))
    given = {"model": str(saved(name, tmp_path)), "preserve": [str(tmp_path / "mine.txt")], "method": method, "threshold": 1e-2}
    size = ["resolution=32", "collect.height=32", "collect.width=32"] if name == "flux" else ["resolution=null"]
    given |= {**FAST, "settings": [*SETTINGS, *size]}
    report = nb.teach(photos, output=tmp_path / "out", device="cpu", **given)
    learned, forgotten = report.verdicts
    assert learned.measured_by.startswith("denoising loss on the pictures of the subject")
    assert 0 < forgotten.value < 0.05  # two steps
    assert report.largest_drift is not None
    assert 0 < report.largest_drift < 0.1
    assert Path(report.result) == tmp_path / "out" / result
    assert report.prompt == "a photo of sks in a bucket"
    assert {"sheet.png", "report.html", "README.md"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_a_model_that_cannot_be_trained_is_refused_by_name(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ModelError, match="LatentConsistencyModelPipeline cannot be trained here"):
        nb.teach(photos, output=tmp_path / "out", model=ROOT / "tests/architectures/lcm", noun="dog")
    assert not (tmp_path / "out").exists()


def test_one_process_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of several processes"):
        nb.teach(output=tmp_path)
