"""Prompts around a bare word."""

import pytest

from nullbooth_cli.editing.around import pairs_around
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.errors import ConfigError


def test_a_word_alone_and_in_templates() -> None:
    pairs = pairs_around("circle", "square")
    assert list(pairs)[:2] == ["[circle]", "image of [circle]"]
    assert pairs["painting of [circle]"] == "painting of [square]"
    assert len(pairs) == 6
    assert "artwork by [Van Gogh]" in pairs_around("Van Gogh", "art", "style")
    assert set(pairs_around("circle", "").values()) == {""}


def test_templates_of_a_class_take_the_article_of_each_word() -> None:
    pairs = pairs_around("circle", "apple", "class")
    assert pairs["a photo of a [circle]"] == "a photo of an [apple]"
    assert len(pairs) > 50
    for source, target in pairs.items():
        assert (Marked.read(source).subject, Marked.read(target).subject) == ("circle", "apple")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "b"), "'' is not a word to edit"),
        (("[a]", "b"), r"'\[a\]' is not a word to edit"),
        (("a", "{}"), "'{}' is not a word to edit"),
        (("a", "b", "art"), "kind='art' is not a choice"),
    ],
)
def test_other_words_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs_around(*arguments)  # type: ignore[arg-type]
