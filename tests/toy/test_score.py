"""The embedded model draws what held-out captions say."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.toy import score, world


@pytest.mark.parametrize("way", list(score.WAYS))
def test_it_draws_what_held_out_captions_say(pipe: Any, way: str) -> None:
    """Twenty captions of the hundred in docs/toy.md; one or two may fail by chance."""
    import diffusers

    from nullbooth_cli.toy.parts import NOISE

    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True, steps_offset=1)
    triples = score.held_out_triples(20)
    rng = np.random.default_rng(0)
    texts = [score.WAYS[way](world.caption(world.Drawing(*triple)), rng) for triple in triples]
    found = score.score(score.paint(pipe, texts, steps=20, guidance=4.0, seed=0), triples)
    assert min(found.colour, found.background) >= 0.95
    assert found.shape >= 0.9


def test_each_part_has_its_share_of_right_pictures() -> None:
    asked = [("circle", "red", "blue"), ("square", "green", "white"), ("star", "cyan", "black"), ("ring", "pink", "gray")]
    drawn = [("circle", "red", "blue"), ("square", "green", "black"), ("cross", "red", "black"), ("ring", "pink", "gray")]
    pictures = np.stack([world.draw(world.Drawing(*triple)) for triple in drawn])
    assert score.score(pictures, asked) == score.Scores(colour=0.75, background=0.75, shape=0.75)


def test_a_picture_is_right_if_all_of_it_is() -> None:
    asked = [("circle", "red", "blue"), ("square", "green", "white"), ("star", "cyan", "black"), ("ring", "pink", "gray")]
    drawn = [("circle", "red", "blue"), ("square", "green", "black"), ("cross", "cyan", "black"), ("ring", "blue", "gray")]
    pictures = np.stack([world.draw(world.Drawing(*triple)) for triple in drawn])
    assert score.share_right(pictures, asked) == 0.25
    assert score.share_right(pictures, drawn) == 1.0


def test_held_out_triples_come_equally_often() -> None:
    _, held_out = world.split()
    assert sorted(score.held_out_triples(len(held_out))) == sorted(held_out)
    assert set(Counter(score.held_out_triples(2 * len(held_out))).values()) == {2}


def test_a_grid_has_white_gutters_between_its_pictures() -> None:
    image = score.grid(np.zeros((3, 32, 32, 3), np.float32), columns=2, scale=1)
    values = np.array(image)[..., 0]
    assert values.shape == (66, 66)
    for white in (values[32:34], values[:, 32:34], values[34:, 34:]):  # the last place has no picture
        assert white.min() == 255
    assert values[:32, :32].max() == values[:32, 34:].max() == values[34:, :32].max() == 0
