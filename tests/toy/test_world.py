"""The world of the embedded model: drawings, their captions, and the scorer that reads them back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.toy import world

everything = st.sampled_from(world.triples())


class TestWorld:
    @settings(deadline=None, max_examples=25)
    @given(everything, st.integers(0, 2**31))
    def test_the_scorer_reads_every_drawing_back(self, triple: world.Triple, seed: int) -> None:
        found = world.read(world.draw(world.sample(triple, np.random.default_rng(seed))))
        assert (found.shape, found.colour, found.background) == triple

    @settings(deadline=None, max_examples=10)
    @given(everything, st.integers(0, 2**31))
    def test_and_still_with_noise(self, triple: world.Triple, seed: int) -> None:
        rng = np.random.default_rng(seed)
        noisy = np.clip(world.draw(world.sample(triple, rng)) + rng.normal(0, 0.03, (32, 32, 3)), 0, 1)
        found = world.read(noisy)
        assert (found.shape, found.colour, found.background) == triple

    @pytest.mark.parametrize(("wrong", "part"), [("square", "shape"), ("green", "colour"), ("black", "background")])
    def test_the_scorer_notices_a_wrong_part(self, wrong: str, part: str) -> None:
        asked = {"shape": "circle", "colour": "red", "background": "blue"}
        drawn = world.read(world.draw(world.Drawing(**{**asked, part: wrong})))
        assert {name for name in asked if getattr(drawn, name) != asked[name]} == {part}

    def test_noise_and_blank_pictures_have_no_shape(self) -> None:
        rng = np.random.default_rng(0)
        assert world.read(rng.random((32, 32, 3))).shape is None
        assert world.read(np.full((32, 32, 3), 0.5)).shape is None

    def test_the_split_is_fixed_and_covers_all(self) -> None:
        training, held_out = world.split()
        assert (len(training), len(held_out)) == (301, 53)
        assert not set(training) & set(held_out)
        assert set(training) | set(held_out) == set(world.triples())

    @given(everything, st.integers(0, 2**31))
    def test_varied_captions_say_nothing_else(self, triple: world.Triple, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawing = world.sample(triple, rng)
        text = world.vary(drawing, rng)
        assert set(text.split()) <= set(world.WORDS)
        others = (set(world.SHAPES) | set(world.RGB)) - set(triple)
        assert not others & set(text.split())


@given(everything, st.integers(0, 2**31))
def test_captions_are_understood(triple: world.Triple, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawing = world.sample(triple, rng)
    asked = dict(zip(("shape", "colour", "background"), triple, strict=True))
    assert world.named(world.caption(drawing)) == asked
    assert world.named(world.vary(drawing, rng, world.unknown_word(rng))).items() <= asked.items()


def test_what_a_caption_leaves_out() -> None:
    assert world.named("a photo of a sks thing") == {}
    assert world.named("a sks circle on a red background") == {"shape": "circle", "background": "red"}
    assert world.named("background") == {}
