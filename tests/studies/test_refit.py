"""The study of refit: its subjects are read exactly, and its table counts what was lost."""

import numpy as np
import pytest

from docs.studies.refit import Point, table
from docs.studies.refit_subjects import IN_SEQUENCE, SUBJECTS, Taught
from nullbooth_cli.toy import world


@pytest.mark.parametrize("taught", dict.fromkeys((*SUBJECTS, *IN_SEQUENCE)), ids=lambda taught: taught.name)
def test_a_subject_is_read_and_nothing_plain_is_taken_for_it(taught: Taught) -> None:
    rng = np.random.default_rng(0)
    for number, background in enumerate(("red", "green", "blue", "yellow")):
        x, y = rng.uniform(-2, 2, size=2)
        picture = taught.draw(background, x=x, y=y, radius=rng.uniform(8.5, 12), number=number)
        assert taught.is_drawn(picture, background, number)
        assert not taught.is_drawn(picture, "white", number)
    plain = [world.draw(world.Drawing(shape, colour, "red")) for shape in world.SHAPES for colour in ("pink", "orange", "cyan")]
    assert not any(taught.is_drawn(picture, "red") for picture in plain)


def test_a_subject_that_was_learned_and_is_gone_is_lost() -> None:
    def point(seed: int, way: str, learned: float, forgotten: float) -> Point:
        return Point(subject="circle", arm="LoRA 8, k v", seed=seed, way=way, learned=learned, other=0.0, forgotten=forgotten)

    rows = table(
        [point(0, "free", 0.75, 4.0), point(1, "free", 0.25, 1.0), point(0, "knee", 0.0, 0.1), point(1, "knee", 0.0, 0.1)]
    )
    assert rows[2:] == [
        "| LoRA 8, k v | free | 0.50 | 0.00 | 2 | 0 of 1 |",
        "| LoRA 8, k v | knee | 0.00 | 0.00 | 0.1 | 1 of 1 |",
    ]
