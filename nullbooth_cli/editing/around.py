"""Pairs of prompts around a bare word, so that its edit holds in prompts as people write them.

    pairs_around("circle", "square")     {"[circle]": "[square]", "image of [circle]": "image of [square]", ...}

The templates are those of UCE and ACE (their option to expand prompts); `class` has the shipped ones of a class noun, with its
articles. The brackets mark the subject (`tokens: subject`).
"""

import re
from typing import Literal

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.class_prompts import fill
from nullbooth_cli.settings.shipped import CLASS_TEMPLATES, shipped

Around = Literal["object", "style", "class"]
TEMPLATES = {
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
}


def pairs_around(source: str, target: str, kind: Around = "object") -> dict[str, str]:
    """Pairs of prompts: the two words alone, and in templates. An empty target stays empty in all of them.

    Raises ConfigError for a word that is empty or has brackets or braces, and for another kind.
    """
    if kind not in (*TEMPLATES, "class"):
        raise ConfigError(f"kind={kind!r} is not a choice", f"set kind to {', '.join(TEMPLATES)} or class")
    for word in (source, target):
        if set("[]{}") & set(word) or (word == source and not word.strip()):
            raise ConfigError(f"'{word}' is not a word to edit", "name it without brackets and braces")
    templates = ("{}", *(TEMPLATES[kind] if kind in TEMPLATES else _of_class()))
    return {_filled(template, source): _filled(template, target) if target.strip() else "" for template in templates}


def _of_class() -> list[str]:
    """The shipped templates that name one member."""
    lines = shipped(CLASS_TEMPLATES).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if len(re.findall(r"\{\}(?!s\b)", line)) == 1 and "{}s" not in line]


def _filled(template: str, word: str) -> str:
    """A template with a word in brackets."""
    before, _, after = fill(template, word).rpartition(word)
    return f"{before}[{word}]{after}"
