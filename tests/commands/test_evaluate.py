"""`nullbooth evaluate`: the options that it refuses."""

from typing import Any

import pytest

from tests.support.cli import nullbooth, refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--against", "x"], ["named twice"]),
        (["x", "--features", "clip"], ["has no '='", "--features clip=FOLDER"]),
        (["x", "--features", "vgg=x"], ["no feature space vgg", "clip, dino"]),
        (["x", "--features", "clip=nowhere"], ["no CLIP model at nowhere"]),
        (["x", "--instances", "x"], ["no subject is named", "--subject"]),
        (["x", "--subject", "a", "--subject-prompts", "x"], ["name the same"]),
    ],
)
def test_what_cannot_be_meant(finished: Any, arguments: list[str], words: list[str]) -> None:
    shown = nullbooth("evaluate", *arguments, "-s", str(finished[1].path), "--num-prompts", "1", "-q")
    refused(shown, 2, *words)
