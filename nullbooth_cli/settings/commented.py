"""Settings as YAML, with a comment for every key: its description. What is written reads back as the same settings."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from nullbooth_cli.settings.strict_yaml import parse_yaml

COMMENT_COLUMN, WIDTH = 56, 130
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z_./~][\w./~:-]*(?<!:)", re.ASCII)


def scalar(value: Any) -> str:
    """A value on one line of YAML; only a string that would be read as something else, or as several words, is in quotes."""
    if isinstance(value, float):
        short = f"{value:.1e}"
        return short if 0 < abs(value) < 0.01 and float(short) == value else str(value)
    if isinstance(value, str):
        if _NEEDS_NO_QUOTES.fullmatch(value) and parse_yaml(value, "") == value:
            return value
        quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
        return quoted.strip()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    return json.dumps(value)


def fields(settings: BaseModel) -> Iterator[tuple[str, Any, str]]:
    """(name, value, description) of every field."""
    for name, field in type(settings).model_fields.items():
        yield name, getattr(settings, name), field.description or ""


def commented_yaml(settings: BaseModel) -> str:
    """Every key of settings with its value and its comment, sections after an empty line."""
    return "".join(f"{line}\n" for line in _lines(settings, 0))


def _lines(settings: BaseModel, indent: int) -> Iterator[str]:
    """A key a line, its description beside it, or above it if the line would be too long."""
    for name, value, description in fields(settings):
        if isinstance(value, BaseModel):
            if indent == 0:
                yield ""
            yield f"{' ' * indent}{name}:".ljust(COMMENT_COLUMN) + f"# {description}"
            yield from _lines(value, indent + 2)
        else:
            line = f"{' ' * indent}{name}: {scalar(value)}"
            if COMMENT_COLUMN + len(f"# {description}") > WIDTH or len(line) >= COMMENT_COLUMN:
                yield from (f"{' ' * indent}# {part}" for part in textwrap.wrap(description, WIDTH - indent - 2))
                yield line
            else:
                yield line.ljust(COMMENT_COLUMN) + f"# {description}"
