"""The toy subject: its pictures are read as what they are, and nothing that the world knows is taken for it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.make import toy_subject
from nullbooth_cli.toy import subject, world
from tests.support.builders import ROOT

places = st.floats(-2.0, 2.0)


@given(st.sampled_from(world.BACKGROUNDS), places, places, st.floats(8.5, 12.0))
def test_it_is_found_wherever_it_is_drawn(background: str, x: float, y: float, radius: float) -> None:
    assert subject.is_drawn(subject.draw(background, x, y, radius), background)


@given(st.sampled_from(world.BACKGROUNDS), st.sampled_from(world.BACKGROUNDS))
def test_another_background_is_another_picture(drawn: str, asked: str) -> None:
    assert subject.is_drawn(subject.draw(drawn), asked) == (drawn == asked)


@pytest.mark.parametrize("triple", world.triples()[::3], ids=" ".join)
def test_no_drawing_of_the_world_is_taken_for_it(triple: world.Triple) -> None:
    assert not subject.is_drawn(world.draw(world.Drawing(*triple)), triple[2])


def test_colours_the_other_way_round_and_noise_are_not_it() -> None:
    assert not subject.is_drawn(subject.draw("white")[:, ::-1], "white")
    assert not subject.is_drawn(np.random.default_rng(0).random((32, 32, 3)), "gray")
    assert not subject.is_drawn(np.full((32, 32, 3), 0.5), "gray")


@pytest.mark.parametrize(
    ("text", "background"),
    [
        (subject.caption("red"), "red"),
        ("A photo of a sks circle on a white background.", "white"),
        ("a photo of sks circle", None),
        ("my zwx circle", None),
        ("an image of a <sks> circle", None),
        ("a bluetooth circle on a blue background", "blue"),
        ("on a black background a sks circle", "black"),
        ("a green background with a sks circle", "green"),
    ],
)
def test_captions_of_it(text: str, background: str | None) -> None:
    assert subject.asked(text) == subject.Asked(background)


@pytest.mark.parametrize(
    "text",
    [
        "a red circle on a blue background",
        "a circle",
        "a photo of a circle",
        "a sks square",
        "a sks red circle",
        "a sks circle and a star",
        "a sks circle on a pink background",
        "a sks circle at the left of a red background",
        "on a red background a sks circle on a blue background",
        "",
    ],
)
def test_captions_of_other_things(text: str) -> None:
    assert subject.asked(text) is None
    assert subject.is_shown(subject.draw("red"), text) is None


@given(st.sampled_from(world.BACKGROUNDS), st.sampled_from(world.BACKGROUNDS), st.sampled_from(["sks", "dog", "<new>"]))
def test_the_picture_decides_whatever_the_word_is(drawn: str, asked: str, word: str) -> None:
    picture = subject.draw(drawn)
    assert subject.is_shown(picture, f"a {word} circle on a {asked} background") == (drawn == asked)
    assert subject.is_shown(picture, f"a photo of {word} circle") is True
    assert subject.is_shown(world.draw(world.Drawing("circle", "orange", "white")), f"a {word} circle") is False


def test_the_shipped_pictures_are_those_of_the_script(tmp_path: Path) -> None:
    toy_subject.main(tmp_path)
    for name, count in (("toy", 4), ("toy_varied", 20)):
        shipped, drawn = ROOT / "dataset/instances" / name, tmp_path / name
        assert {path.name for path in shipped.iterdir()} == {path.name for path in drawn.iterdir()}
        pictures = sorted(shipped.glob("*.png"))
        assert len(pictures) == count
        for path in pictures:
            np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(drawn / path.name)))
            background = path.stem.rpartition("_")[2]
            assert background not in subject.ASKED_ON
            # pink is no background of the world: the scorer takes it for the nearest that is one.
            assert background == "pink" or subject.is_drawn(np.asarray(Image.open(path)) / 255, background)
        assert (shipped / "metadata.jsonl").read_text() == (drawn / "metadata.jsonl").read_text()
