"""The subject of an evaluation: named by the caller, or found where a training run wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.subject import NO_PICTURES, NoSubject, Subject, find_subject, output_of, store_of
from tests.support.pictures import picture

CAPTIONS = {"a": "a sks circle on a white background", "b": "a Sks circle on a black background"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (name, text) in enumerate(CAPTIONS.items()):
        picture(i).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text)
    return folder


def trained(folder: Path, pictures: Path, *, token: str | None = "sks", **recipe: Any) -> str:
    """A training output; returns its place."""
    (folder / "pipeline").mkdir(parents=True, exist_ok=True)
    written = {"word": "sks", "instance_images": str(pictures), "instance_prompt": None, "validation_prompts": [], **recipe}
    (folder / "train.json").write_text(json.dumps({"steps": 4, "token": token, "recipe": written}))
    return str(folder)


@pytest.mark.parametrize("inside", ["", "pipeline", "lora", "checkpoint-000200", "checkpoint-000200/trained"])
def test_an_output_is_found_from_every_place_in_it(tmp_path: Path, pictures: Path, inside: str) -> None:
    place = trained(tmp_path / "out", pictures)
    assert output_of(str(Path(place, inside))) == Path(place)


@pytest.mark.parametrize("inside", ["validation", "pipeline/unet/x", "other"])
def test_other_places_are_no_output(tmp_path: Path, pictures: Path, inside: str) -> None:
    place = trained(tmp_path / "out", pictures)
    assert output_of(str(Path(place, inside))) is None
    assert find_subject([str(Path(place, inside)), "owner/name"]) == Subject()


def test_captions_are_prompts_if_nothing_else_is_known(tmp_path: Path, pictures: Path) -> None:
    """With the word as its token is written: T5 minds capitals."""
    found = find_subject(["x", trained(tmp_path / "out", pictures)])
    written = {name: caption.replace("Sks", "sks") for name, caption in CAPTIONS.items()}
    assert found.prompts == tuple(map(Prompt, written.values()))
    assert [(each.path.stem, each.caption) for each in found.instances] == list(written.items())


def test_a_prompt_for_all(tmp_path: Path, pictures: Path) -> None:
    found = find_subject([trained(tmp_path / "out", pictures, instance_prompt="a photo of sks circle")])
    assert found.prompts == (Prompt("a photo of sks circle"),)
    assert {each.caption for each in found.instances} == {"a photo of sks circle"}


def test_validation_prompts_of_the_word_come_first(tmp_path: Path, pictures: Path) -> None:
    prompts = ["a sks circle on a red background", "a red circle", "sksy thing"]
    found = find_subject([trained(tmp_path / "out", pictures, validation_prompts=prompts)])
    assert found.prompts == (Prompt(prompts[0]),)
    without = find_subject([trained(tmp_path / "out", pictures, validation_prompts=prompts, word=None)])
    assert without.prompts == tuple(map(Prompt, CAPTIONS.values()))


def test_the_token_of_the_word_is_written(tmp_path: Path, pictures: Path) -> None:
    place = trained(tmp_path / "out", pictures, token="<sks>", validation_prompts=["a sks circle"])
    found = find_subject([place])
    assert found.prompts == (Prompt("a <sks> circle"),)
    assert [each.caption for each in found.instances] == [
        "a <sks> circle on a white background",
        "a <sks> circle on a black background",
    ]


def test_what_is_named_comes_first(tmp_path: Path, pictures: Path) -> None:
    place, other = trained(tmp_path / "out", pictures), tmp_path / "other"
    other.mkdir()
    picture(7).save(other / "c.png")
    mine = (Prompt("my circle"),)
    found = find_subject([place], mine)
    assert (found.prompts, len(found.instances)) == (mine, 2)
    found = find_subject([place], instances=other)
    assert (found.prompts[0].text, [each.path.name for each in found.instances]) == (CAPTIONS["a"], ["c.png"])
    found = find_subject([place], mine, other)
    assert (found.prompts, [each.caption for each in found.instances]) == (mine, ["my circle"])
    assert find_subject(["x"], mine) == Subject(prompts=mine, missing=NO_PICTURES)
    with pytest.raises(NoSubject, match="no subject is named, but pictures of it"):
        find_subject(["x"], instances=other)


def test_pictures_that_are_gone_are_a_reason(tmp_path: Path) -> None:
    found = find_subject([trained(tmp_path / "out", tmp_path / "gone", instance_prompt="a photo of sks circle")])
    assert (found.prompts, found.instances) == ((Prompt("a photo of sks circle"),), ())
    assert found.missing.startswith("those of the training run cannot be read: no folder of images at")
    assert find_subject([trained(tmp_path / "two", tmp_path / "gone")]).prompts == ()


def test_an_unfinished_run_has_a_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint-000200/trained"
    folder.mkdir(parents=True)
    (folder / "base.json").write_text(json.dumps({"model": "toy", "token": "<sks>", "instance_prompt": "a <sks> circle"}))
    for place in (tmp_path / "out", folder.parent, folder):
        found = find_subject(["owner/name", str(place)])
        assert (found.prompts, found.instances) == ((Prompt("a <sks> circle"),), ())
        assert "no result yet" in found.missing


@pytest.mark.parametrize(("text", "words"), [("{", "train.json"), ("[]", "has a list"), ('{"steps": 1}', "has no recipe")])
def test_a_result_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        find_subject([str(tmp_path)])


def test_the_store_of_a_run(tmp_path: Path) -> None:
    assert store_of(str(tmp_path)) is None, "no run"
    (tmp_path / "pipeline").mkdir()
    for store in ("runs/words.zarr", None):
        (tmp_path / "train.json").write_text(json.dumps({"token": None, "recipe": {"store": store}}))
        assert store_of(str(tmp_path)) == store_of(str(tmp_path / "pipeline")) == store
