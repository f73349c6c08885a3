"""Files of settings, read strictly into a pydantic model: unknown keys are refused, and all mistakes are reported at once.

`load_settings()` reads a YAML file and applies `KEY=VALUE` overrides; `validate()` takes a mapping. Such a model is a `Section`,
and its validators raise `refusal()`.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.strict_yaml import parse_yaml


class Section(BaseModel):
    """Keys that belong together; messages send the reader to `reference` and `example`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
    reference: ClassVar[str] = "docs/reference/config.md"
    example: ClassVar[str] = "configs/nullbooth.yaml"


SectionT = TypeVar("SectionT", bound=Section)


def refusal(message: str, hint: str) -> PydanticCustomError:
    """The error of a validator about several keys together; `hint` is how to fix them."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def load_settings(kind: type[SectionT], path: Path, overrides: Iterable[str] = ()) -> SectionT:
    """Read a file of settings and apply `KEY=VALUE` overrides. Raises ConfigError naming the key and the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no file at {path} (in {Path.cwd()})", "name a file that exists") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "save it as a text file in UTF-8") from error
    data = parse_yaml(text, str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} has a {type(data).__name__} instead of keys and values", f"write it as {kind.example} is")
    return validate(kind, data or {}, overrides, str(path))


def validate(kind: type[SectionT], data: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "overrides") -> SectionT:
    """Validate a nested mapping, with `a.b=c` overrides on top; `source` begins the message if something is wrong."""
    merged: dict[str, Any] = json.loads(json.dumps(data))
    for override in overrides:
        _apply(kind, merged, override)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _explain(kind, error, source) from error


def _apply(kind: type[Section], data: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign:
        raise ConfigError(f"the override {override} has no '='", "write section.key=value")
    *sections, last = key.strip().split(".")
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            hint = f"name a key inside a section: {', '.join(_sections(kind))}"
            raise ConfigError(f"the override {override}: '{section}' is not a section", hint)
        place = inner
    place[last] = parse_yaml(value, f"the override {override}")


def _explain(kind: type[Section], error: ValidationError, source: str) -> ConfigError:
    """All problems at once, one a line, and a hint for each."""
    lines, hints = zip(*(_explain_one(kind, problem) for problem in error.errors()), strict=True)
    separator = "\n  "
    return ConfigError(f"{source}: {separator.join(dict.fromkeys(lines))}", "\n".join(dict.fromkeys(hints)))


def _explain_one(kind: type[Section], problem: ErrorDetails) -> tuple[str, str]:
    """The line and the hint for one problem; for an unknown key, the hint is the nearest known one."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        return f"unknown key '{key}'", f"did you mean '{near[0]}'?" if near else f"choose a known key: {', '.join(known)}"
    if problem["type"] == "refused":
        return ": ".join(filter(None, (key, problem["msg"]))), problem["ctx"]["hint"]
    msg = problem["msg"]
    is_quoted_number = isinstance(problem["input"], str) and problem["type"] in ("float_type", "int_type")
    return (
        ": ".join(filter(None, (_readable(path), f"{msg[0].lower()}{msg[1:]}, got {problem['input']!r}"))),
        "write a number without quotes" if is_quoted_number else f"see {kind.reference} for what each key takes",
    )


def _readable(path: list[str]) -> str:
    """The path without the branch of a union (`list[str]`, `literal['all']`) at its end, which the user never wrote."""
    return ".".join(part for part in path if re.fullmatch(r"\w+", part) and part not in ("str", "int"))


def _sections(kind: type[Section]) -> list[str]:
    return [
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    ]


def _known_keys(kind: type[Section], sections: list[str]) -> list[str]:
    model = kind
    for section in sections:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        model = annotation
    return list(model.model_fields)
