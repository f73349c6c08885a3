"""Which pictures an evaluation draws."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.answer import SUBJECT
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.evaluation.request import EvaluationRequest, Instance, instances_in, picture_sets, slices_of, specs_of
from tests.support.pictures import picture

counts = st.dictionaries(st.sampled_from(["preserved", "heldout", "given"]), st.integers(0, 9))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"prompt {i}") for i in range(count)]


@given(counts, st.integers(1, 9), st.integers(0, 3), st.integers(1, 4))
def test_sets_have_as_many_pictures_as_asked_for(sizes: dict[str, int], most: int, subjects: int, images: int) -> None:
    of = {name: prompts(count) for name, count in sizes.items()}
    found = picture_sets(of, prompts(subjects), num_prompts=most, subject_images=images)
    expected = {name: min(count, most) for name, count in sizes.items() if count}
    assert {name: len(specs) for name, specs in found.items()} == expected | ({SUBJECT: subjects * images} if subjects else {})
    for name, count in expected.items():
        places = [of[name].index(spec.prompt) for spec in found[name]]
        assert places == sorted(set(places)), "each once, in their order"
        assert len(places) == count
    assert found == picture_sets(of, prompts(subjects), num_prompts=most, subject_images=images), "the same every time"


@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 4))
def test_of_several_prompts_each_has_as_many_pictures(count: int, most: int, most_of_one: int) -> None:
    found = specs_of(prompts(count), most, most_of_one)
    numbers: dict[str, list[int]] = {}
    for spec in found:
        numbers.setdefault(spec.prompt.text, []).append(spec.number)
    assert len(found) <= most
    assert len(numbers) == min(count, most)
    for each in numbers.values():
        assert each == list(range(min(most_of_one, most // len(numbers))))


@given(counts)
def test_slices_share_out_all_pictures(sizes: dict[str, int]) -> None:
    sets = {name: tuple(map(PictureSpec, prompts(count))) for name, count in sizes.items()}
    everything = [spec for specs in sets.values() for spec in specs]
    assert {name: tuple(everything[places]) for name, places in slices_of(sets).items()} == sets


def test_a_model_is_named_once() -> None:
    with pytest.raises(ConfigError, match="named twice: a b a"):
        EvaluationRequest(edited=("a", "b", "a"), sets={})


def test_instances_need_a_subject() -> None:
    with pytest.raises(ConfigError, match="no subject is named"):
        EvaluationRequest(edited=("a",), sets={"preserved": ()}, instances=(Instance(Path("x/a.png"), "a"),))


def test_instances_have_their_captions_or_the_prompt(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    assert [each.caption for each in instances_in(tmp_path, "a sks circle")] == ["a sks circle"] * 2
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(ConfigError, match=r"no caption for .*b\.png"):
        instances_in(tmp_path, "a sks circle")
    (tmp_path / "b.txt").write_text("other\n")
    found = instances_in(tmp_path, "a sks circle")
    assert [(each.path.name, each.caption) for each in found] == [("a.png", "one"), ("b.png", "other")]


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no image"):
        instances_in(tmp_path, "a")
    picture(0).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"a\.png in .*neither images"):
        instances_in(tmp_path, "a")
