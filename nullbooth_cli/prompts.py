"""Prompts: a text file with one prompt a line, or a list in the config. Blank lines do not count; a prompt stands once.

`images` has prompts that come with an image.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nullbooth_cli.errors import ConfigError


@dataclass(frozen=True)
class Prompt:
    """A text, or the caption of an image; `image` is then the digest of its file."""

    text: str
    image: str | None = None

    @property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the text (and image): the same in every file, order and run."""
        known = self.text if self.image is None else f"{self.text}\0{self.image}"
        return hashlib.sha256(known.encode()).hexdigest()[:12]


def load_prompts(source: str | list[str], key: str = "original_knowledge_prompts") -> tuple[Prompt, ...]:
    """Read the prompts of a text file (UTF-8) or take those of a list; `key` is where the config names it.

    Raises ConfigError if there are none, if one stands twice (with both places), or if the file cannot be read.
    """
    if isinstance(source, list):
        return _check([(f"prompt {i + 1}", text) for i, text in enumerate(source)], "the list of prompts in the config")
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        hint = f"set {key}; relative paths start at the current folder"
        raise ConfigError(f"no prompt file at {path} (in {Path.cwd()})", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompt file {path}: {error}", "it is a UTF-8 text file, one prompt a line") from error
    return _check([(f"line {i + 1}", line) for i, line in enumerate(lines)], str(path))


def _check(places: Iterable[tuple[str, str]], source: str) -> tuple[Prompt, ...]:
    seen: dict[str, str] = {}
    for place, line in places:
        text = line.strip()
        if not text:
            continue
        if text in seen:
            raise ConfigError(f"{source}: {place} repeats {seen[text]}: '{text}'", "remove one: each prompt counts once")
        seen[text] = place
    if not seen:
        raise ConfigError(f"{source} holds no prompt", "write one prompt a line")
    return tuple(Prompt(text) for text in seen)
