"""Requests: what a user may ask for, and the prompts that follow from it."""

from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.teaching.request import PHOTOGRAPHS, TOY, TeachRequest
from nullbooth_cli.toy import subject


def request(**given: Any) -> TeachRequest:
    return validate(TeachRequest, {"pictures": "photos", **given}, source="the request")


def test_the_caption_is_made_of_word_and_class() -> None:
    assert request(word="zwx", noun="dog", model="sd15").subject == "a photo of zwx dog"
    assert request(word="zwx", model="sd15").subject == "a photo of zwx"
    assert request(word="zwx", noun="dog", caption="zwx the dog").subject == "zwx the dog"


def test_the_embedded_model_has_a_class() -> None:
    assert request().kind.noun == TOY.noun == "circle"
    assert request().subject == "a photo of sks circle"


def test_prompts_of_the_subject_are_scenes() -> None:
    dog = request(noun="dog", model="some/model")
    assert dog.kind.scenes == PHOTOGRAPHS.scenes
    assert dog.subject_prompts[0] == "a photo of sks dog in a bucket"
    assert len(set(dog.subject_prompts)) == len(PHOTOGRAPHS.scenes)


def test_the_toy_is_asked_for_backgrounds_that_no_demo_picture_has() -> None:
    asked = [prompt.split()[-2] for prompt in request().subject_prompts]
    assert asked == list(subject.ASKED_ON)
    assert not set(asked) & {*subject.TAUGHT_ON, "pink"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"word": "two words"}, "the word 'two words' is more than one word"),
        ({"word": " "}, "the word is empty"),
        ({"noun": ""}, "the class is empty"),
        ({"caption": ""}, "the caption is empty"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"threshold": 1.0}, "threshold: input should be less than 1"),
        ({"method": "dora"}, "method: input should be 'full' or 'lora'"),
        ({"resize": "stretch"}, "resize: input should be"),
        ({"wrod": "sks"}, "unknown key 'wrod'"),
    ],
)
def test_what_cannot_be_asked_for(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        request(**given)
