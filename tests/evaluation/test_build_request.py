"""From models, prompts, a subject and an edit to the pictures that are drawn."""

import json
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.build_request import build_request, earlier_specs
from nullbooth_cli.evaluation.edited_prompts import EditedPrompts
from nullbooth_cli.evaluation.subject import Subject

DOG, CAT = "a photo of sks dog", "a photo of zwx cat"


def taught(folder: Path, prompt: str) -> str:
    """The output of a training run that taught a prompt; its pictures are gone."""
    folder.mkdir(parents=True)
    recipe = {"instance_prompt": prompt, "instance_images": str(folder / "gone"), "word": prompt.split()[3]}
    (folder / "train.json").write_text(json.dumps({"recipe": recipe, "token": prompt.split()[3]}))
    return str(folder)


def edited(folder: Path, pairs: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "edit.json").write_text(json.dumps({"pairs": pairs}))
    return str(folder)


def request(**changes: Any) -> Any:
    given = {"subject": Subject(), "encoders": {}, "device": None, "batch_size": 2, "num_prompts": 9, "subject_images": 3}
    return build_request(["m"], {"preserved": [Prompt("a star"), Prompt("one")], "heldout": [Prompt("two")]}, **(given | changes))


def test_the_sets_of_an_edit_and_what_is_left_out() -> None:
    found = request(edits=EditedPrompts(pairs={"a star": ("a ring",)}, given={"my star": ("my ring", "a ring")}))
    assert {name: [spec.prompt.text for spec in specs] for name, specs in found.sets.items()} == {
        "preserved": ["one"],
        "heldout": ["two"],
        "edited": ["a star"] * 3,
        "paraphrases": ["my star"] * 3,
    }
    assert (found.num_left_out, found.base) == (1, None)
    assert [spec.prompt.text for spec in found.target_specs] == ["a ring"] * 3 + ["my ring", "a ring"] * 3


def test_what_the_base_was_taught_comes_along(tmp_path: Path) -> None:
    base = taught(tmp_path / "dog", DOG)
    found = request(base=base, subject=Subject(prompts=(Prompt(CAT),)))
    assert [(spec.prompt.text, spec.number) for spec in found.sets["earlier"]] == [(DOG, number) for number in range(3)]
    assert [spec.prompt.text for spec in found.sets["subject"]] == [CAT] * 3
    assert list(found.sets) == ["preserved", "heldout", "earlier", "subject"]
    assert found.base == base


def test_what_is_measured_as_the_subject_is_not_earlier(tmp_path: Path) -> None:
    """A checkpoint beside an earlier one of the same run."""
    base = taught(tmp_path / "dog", DOG)
    assert earlier_specs(base, [Prompt(DOG)], None, num_prompts=9, subject_images=3) == ()


def test_what_the_base_was_edited_to_draw_comes_along_unless_it_changed_again(tmp_path: Path) -> None:
    base = edited(tmp_path / "base", {"one": "a", "two": "b", "three": "c"})
    edits = EditedPrompts(pairs={"one": ("a",), "two": ("other",)})
    found = earlier_specs(base, [], edits, num_prompts=9, subject_images=2)
    assert [(spec.prompt.text, spec.targets) for spec in found] == [("one", ("a",))] * 2 + [("three", ("c",))] * 2
    assert earlier_specs(str(tmp_path), [], None, num_prompts=9, subject_images=2) == ()
