"""Syntax for the weight of words, which some interfaces read and diffusers does not: it takes the signs as text."""

import re
from collections.abc import Iterable

from nullbooth_cli.formatting import counted
from nullbooth_cli.settings.texts import cut

# What each form looks like. Ordinary brackets are none: "(a dog)", "(at 10:30)", "(ratio 16:9)", "[V]", "[sic]", "COFFEE BREAK".
_FORMS = (
    re.compile(r"\([^()]*[^\s():\d][ ]?:(?:[0-9](?:\.[0-9]+)?|\.[0-9]+)\)"),  # (word:1.3)
    re.compile(r"\(\([^()]+\)\)"),  # ((word))
    re.compile(r"\[(?!sic\])(?=[^\[\]]*[a-z]{2})[^\[\]]+\](?!\()"),  # [word], [from:to:0.5]
    re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>"),
    re.compile(r"(?:^|(?<=[\s,]))(?<![A-Z]\s)BREAK(?=[\s,]|$)(?!\s+[A-Z]{2})"),
)


def weighting_note(texts: Iterable[str]) -> str | None:
    """A sentence that counts the texts with such syntax, and shows one; None if there is none."""
    found = [(match[0], text) for text in texts for form in _FORMS if (match := form.search(text))]
    if not found:
        return None
    number = len({text for _, text in found})
    signs, text = found[0]
    verb = "has" if number == 1 else "have"
    return (
        f"warning: {counted(number, 'prompt')} {verb} syntax for weights, which diffusers does not read: it takes "
        f"'{cut(signs, 40)}' as text, such as in '{cut(text)}'"
    )
