"""A second subject after a first: what it takes over, what its store remembers, what resumes, what is refused."""

import hashlib
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.store import open_backing, remembered, tasks_of
from nullbooth_cli.teaching import request
from nullbooth_cli.teaching.decide import find
from nullbooth_cli.teaching.decision import read
from nullbooth_cli.teaching.go_on import inherit_store, task_prompts
from nullbooth_cli.teaching.plan import plan_teaching
from nullbooth_cli.teaching.teach import teach_events
from nullbooth_cli.training import durable
from tests.support.subjects import loaded
from tests.support.tiny_dreambooth import encoded
from tests.teaching.conftest import FEW

Taught = tuple[nb.TeachReport, list[Event]]


def content(folder: Path) -> dict[str, str]:
    """A digest of every file; locks beside the store are no part of it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cat(taught: Taught, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nb.TeachReport, Path]:
    """The second subject, and the first's output. Read only."""
    dog, before = Path(taught[0].output), content(Path(taught[0].output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "TOY", FEW)  # it lives longer than the fixture for one test
        report = nb.teach(photos, output=tmp_path_factory.mktemp("cat") / "out", word="zwx", after=str(dog), device="cpu")
    assert content(dog) == before, "the first output is as it was"
    return report, dog


def test_it_takes_over_what_was_decided(cat: tuple[nb.TeachReport, Path]) -> None:
    found, before = read(cat[0].output), read(str(cat[1]))
    assert found is not None
    assert before is not None
    assert found.recipe.after == found.request.after == str(cat[1])
    assert (found.preserved, found.heldout, found.request.model) == (before.preserved, before.heldout, "toy")
    same = {"max_train_steps", "train_batch_size", "method", "learning_rate", "features"}
    assert found.recipe.model_dump(include=same) == before.recipe.model_dump(include=same)
    assert found.config.schedule == before.config.schedule
    assert found.earlier == before.subject
    assert found.recipe.validation_prompts[-1] == before.subject[0]


def test_its_store_remembers_the_first(cat: tuple[nb.TeachReport, Path]) -> None:
    store = nb.open_store(cat[0].store)
    [task] = tasks_of(store.store)
    assert (task.name, task.source) == (cat[1].name, str(cat[1]))
    prompts = [prompt.text for prompt in task.store.prompts()]
    endings = dict.fromkeys(text.partition("circle")[2] for text in store.prompts() if "circle" in text)
    assert prompts == ["a photo of sks circle", *(f"a photo of sks circle{ending}" for ending in endings if ending)]
    assert len(prompts) > 10
    first, site = nb.open_store(str(cat[1] / "store.zarr")), store.sites()[0]
    assert store.moment(site).count == first.moment(site.name).count + 32 * len(prompts), "with guidance and without"
    store.projectors(loaded(store.config, cat[1]).unet)


def test_little_of_the_first_is_left_to_change(cat: tuple[nb.TeachReport, Path]) -> None:
    """The energy of its prompts in the null space, on backgrounds that no picture had: against a store without the task."""
    with_task, alone = nb.open_store(cat[0].store), nb.open_store(str(cat[1] / "store.zarr"))
    texts = [f"a photo of sks circle on a {colour} background" for colour in ("red", "blue", "green")]
    inputs = encoded(loaded(alone.config, cat[1]), texts).flatten(0, 1).double().numpy()
    left, before = (np.square(store.projector(store.sites()[0]).apply(inputs)).sum() for store in (with_task, alone))
    assert 0 < left < 0.4 * before


def test_the_same_request_again_does_nothing(cat: tuple[nb.TeachReport, Path]) -> None:
    before = content(Path(cat[0].output))
    events: list[Event] = []
    assert nb.teach(output=cat[0].output, on_event=events.append) == cat[0]
    assert content(Path(cat[0].output)) == before
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "evaluation is complete" in notes
    assert plan_teaching({}, cat[0].output, device="cpu").remembers == ()


@pytest.mark.parametrize("stage", ["remember", "train"])
def test_stopped_anywhere_it_resumes(cat: tuple[nb.TeachReport, Path], photos: Path, tmp_path: Path, stage: str) -> None:
    given = {"pictures": str(photos), "word": "zwx", "after": str(cat[1])}
    with closing(teach_events(given, str(tmp_path / "out"), device="cpu")) as events:
        next(event for event in events if isinstance(event, Progress) and event.stage == stage)
    report = nb.teach(photos, output=tmp_path / "out", device="cpu", word="zwx", after=str(cat[1]))
    assert [task.source for task in tasks_of(nb.open_store(report.store).store)] == [str(cat[1])]
    expected, found = (json.loads((Path(each.output) / "train.json").read_text()) for each in (cat[0], report))
    assert found["run"]["decides"] == expected["run"]["decides"], "the projectors too"


def test_a_copy_that_was_stopped_is_made_again(cat: tuple[nb.TeachReport, Path], tmp_path: Path, monkeypatch: Any) -> None:
    store = str(tmp_path / "store.zarr")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            inherit_store(str(cat[1]), store)
    assert not Path(store).exists()
    inherit_store(str(cat[1]), store)
    assert remembered(nb.open_store(store).store, str(cat[1])) is None
    assert content(Path(store)) == content(cat[1] / "store.zarr")


def test_the_verdicts_are_against_the_model_before(cat: tuple[nb.TeachReport, Path]) -> None:
    learned, forgotten, earlier = cat[0].verdicts
    assert (learned.question, forgotten.question, earlier.question) == ("learned", "forgotten", "earlier")
    report = json.loads((Path(cat[0].output) / "evaluation.json").read_text())["report"]
    assert report["base"] == str(cat[1])
    texts = [each["text"] for each in report["preservation"]["earlier"]["by_picture"]]
    assert texts == [f"a photo of sks circle on a {colour} background" for colour in ("red", "green", "blue", "yellow")]
    found = report["preservation"]["earlier"]
    shown, changes = found["shown"], [each["latent_mse"] for each in found["by_picture"]]
    worst, mean = int(np.argmax(changes)), float(np.mean(changes))
    assert earlier.value == pytest.approx(found["latent_mse_relative"] * changes[worst] / mean)
    assert earlier.measured_by == (
        f"latent MSE on '{texts[worst]}', the worst of 4 prompts of what was taught before, "
        f"shown in {shown['edited']:.2f} of the pictures of all, {shown['base']:.2f} before"
    )
    page = (Path(cat[0].output) / "report.html").read_text()
    assert "Did what was taught before stay?" in page
    assert earlier.word in page


def test_both_outputs_may_be_moved_together(cat: tuple[nb.TeachReport, Path], photos: Path, tmp_path: Path) -> None:
    dog, made = (tmp_path / "moved" / path.parent.name / path.name for path in (cat[1], Path(cat[0].output)))
    shutil.copytree(cat[1], dog)
    shutil.copytree(cat[0].output, made)
    assert nb.teach(output=made, after=str(dog)).verdicts == cat[0].verdicts
    decision = read(str(made))
    assert decision is not None
    assert decision.recipe.after == decision.request.after == str(dog)
    assert remembered(nb.open_store(str(made / "store.zarr")).store, str(dog)) is not None
    third = find({"pictures": str(photos), "word": "qfj", "after": str(made)}, str(tmp_path / "out"), on_cpu=True)
    assert len(third.earlier) == 8
    asked = {**durable.read_record(made / "teach.json", ""), "after": "/nowhere/dog"}
    (made / "teach.json").write_text(durable.record_text(asked))
    shutil.rmtree(dog)
    with pytest.raises(ConfigError, match=r"was trained after /nowhere/dog, which is gone") as caught:
        nb.teach(output=made)
    assert caught.value.hint == "put it back, or keep both in one folder when you move them"


def test_a_plan_counts_the_copy_and_the_task(cat: tuple[nb.TeachReport, Path], photos: Path, tmp_path: Path) -> None:
    given = {"pictures": str(photos), "word": "zwx", "after": str(cat[1])}
    planned = plan_teaching(given, str(tmp_path / "out"), device="cpu")
    assert planned.remembers == task_prompts(str(cat[1]))
    assert planned.stages["collect"].units_done == planned.stages["collect"].units_total > 0
    assert planned.pictures == 3 * (4 + 4 + 4 + 4), "preserved, held out, of the earlier subject and of the new one"
    assert planned.bytes_needed > nb.open_store(str(cat[1] / "store.zarr")).store.nbytes("") > 0
    assert not (tmp_path / "out").exists()


class TestRefused:
    def test_what_was_not_taught_to_its_end(self, cat: tuple[nb.TeachReport, Path], photos: Path, tmp_path: Path) -> None:
        given = {"pictures": str(photos), "word": "zwx"}
        with pytest.raises(ConfigError, match=r"nowhere is not the output of teaching: it has no teach\.json"):
            find({**given, "after": str(tmp_path / "nowhere")}, str(tmp_path / "out"), on_cpu=True)
        shutil.copytree(cat[1], tmp_path / "dog")
        (tmp_path / "dog/train.json").unlink()
        with pytest.raises(ConfigError, match="dog is not taught to its end"):
            find({**given, "after": str(tmp_path / "dog")}, str(tmp_path / "out"), on_cpu=True)

    def test_the_same_word_and_another_model(self, cat: tuple[nb.TeachReport, Path], photos: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the word 'sks' is in 1 preserved prompt"):
            nb.teach(photos, output=tmp_path / "out", after=str(cat[1]), device="cpu")
        with pytest.raises(ConfigError, match="is a model of toy, and sd15 is named"):
            nb.teach(photos, output=tmp_path / "out", after=str(cat[1]), word="zwx", model="sd15", device="cpu")
        with pytest.raises(ConfigError, match="no pictures are named"):
            nb.teach(output=tmp_path / "out", after=str(cat[1]), word="zwx", device="cpu")
        assert not (tmp_path / "out").exists()

    def test_an_output_of_another_request(self, cat: tuple[nb.TeachReport, Path], photos: Path) -> None:
        with pytest.raises(ConfigError, match="made for another request\n  word: sks -> zwx") as caught:
            nb.teach(photos, output=cat[1], word="zwx")
        assert f"name another output, with after: {cat[1]}" in caught.value.hint
        with pytest.raises(ConfigError, match=r"made for another request\n  after: .* -> /elsewhere"):
            nb.teach(output=cat[0].output, after="/elsewhere")

    def test_a_store_that_is_written_to(self, cat: tuple[nb.TeachReport, Path], tmp_path: Path) -> None:
        with open_backing(str(cat[1] / "store.zarr")).lock(), pytest.raises(StoreError, match="in use"):
            inherit_store(str(cat[1]), str(tmp_path / "store.zarr"))
        assert not (tmp_path / "store.zarr").exists()
