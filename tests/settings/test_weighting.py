"""Weights in prompts are seen, and ordinary brackets are not taken for them."""

import pytest

from nullbooth_cli.settings.weighting import weighting_note


@pytest.mark.parametrize(
    "text",
    [
        *("a (red:1.3) dog", "a (red fox:0.8)", "(masterpiece:2), a dog", "(a dog :1.1)", "a (red:.5) dog"),
        *("a ((red)) dog", "a (((red))) dog", "a [blurry] dog", "a [cat:dog:0.5]", "a [cat|dog] in a field"),
        *("a dog <lora:sks:0.8>", "a dog, BREAK, a cat", "a dog BREAK a cat", "a dog\tBREAK"),
    ],
)
def test_weights_are_seen(text: str) -> None:
    note = weighting_note(["a cat", text])
    assert note is not None
    assert note.startswith("warning: 1 prompt has syntax for weights")
    assert text in note


@pytest.mark.parametrize(
    "text",
    [
        *("a dog (brown)", "a dog (a poodle) and (maybe) a cat", "a clock (at 10:30)", "a film (ratio 16:9)", "(John 3:16)"),
        *(
            "a [V] dog",
            "a [v] dog",
            "as he said [sic]",
            "see [1] and [12]",
            "[a link](page)",
            "COFFEE BREAK",
            "a sign: BREAK TIME",
        ),
        *(
            'a sign that says "BREAK"',
            "BREAKING news",
            "a dog :) and a cat :3)",
            "f(g(x))",
            "a <b> c",
            "a (note: 5) b",
            "a dog (c. 1900)",
        ),
    ],
)
def test_ordinary_brackets_are_text(text: str) -> None:
    assert weighting_note([text]) is None


def test_many_are_counted_once() -> None:
    note = weighting_note([f"a ((red)) [blurry] dog {i}" for i in range(3)])
    assert note == (
        "warning: 3 prompts have syntax for weights, which diffusers does not read: it takes '((red))' as text, such as in "
        "'a ((red)) [blurry] dog 0'"
    )
