"""Prompts as options name them: texts, files of them, and a word that others are made around."""

import re
from collections.abc import Sequence
from pathlib import Path

from nullbooth_cli.settings.class_prompts import with_class_prompts
from nullbooth_cli.settings.prompts import load_prompts

_FILE = re.compile(r"nullbooth:.+|\S+\.(txt|csv|tsv|jsonl|ndjson|json)(#.+)?", re.IGNORECASE)  # and no prompt, if it is missing


def prompts_to_use(given: Sequence[str], word: str | None, option: str = "--prompts") -> tuple[str, ...]:
    """The prompts of an option, by its name: texts, those in files, and those around a word."""
    texts: list[str] = []
    for each in given:
        texts += [prompt.text for prompt in load_prompts(each, option)] if _is_file(each) else [each]
    return with_class_prompts(texts, word)


def _is_file(text: str) -> bool:
    try:
        return bool(_FILE.fullmatch(text)) or Path(text).is_file()
    except OSError:  # longer than a name may be
        return False
