"""Files of settings, read strictly into a pydantic model: unknown keys are refused, and all mistakes are reported at once.

`load_settings()` reads a YAML file and applies `KEY=VALUE` overrides; `validate()` takes a mapping. Such a model is a `Section`.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.strict_yaml import parse_yaml


class Section(BaseModel):
    """Keys that belong together; `reference` and `example` are where a reader is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
    reference: ClassVar[str] = "docs/reference/config.md"
    example: ClassVar[str] = "configs/nullbooth.yaml"


Kind = TypeVar("Kind", bound=Section)


def load_settings(kind: type[Kind], path: Path, overrides: Iterable[str] = ()) -> Kind:
    """Read a file of settings and apply `KEY=VALUE` overrides. Raises ConfigError naming the key and the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "a config is a UTF-8 text file") from error
    data = parse_yaml(text, str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not keys and values", f"see {kind.example}")
    return validate(kind, data or {}, overrides, str(path))


def validate(kind: type[Kind], data: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "--set") -> Kind:
    """Validate a nested mapping, with `a.b=c` overrides on top."""
    merged: dict[str, Any] = json.loads(json.dumps(data))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ConfigError(f"--set {override} has no '='", "write --set section.key=value")
        *sections, last = key.strip().split(".")
        place = merged
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: '{section}' is not a section", f"sections: {', '.join(_sections(kind))}")
            place = inner
        place[last] = parse_yaml(value, f"--set {key}")
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _explain(kind, error, source) from error


def _explain(kind: type[Section], error: ValidationError, source: str) -> ConfigError:
    """All problems at once, one a line; the nearest known key for an unknown one."""
    lines, hints = [], []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, path[:-1])
            lines.append(f"unknown key '{key}'")
            near = difflib.get_close_matches(path[-1], known, n=1)
            hints.append(f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}")
        elif problem["type"] == "value_error":
            message, *hint = problem["ctx"]["error"].args
            lines.append(": ".join(filter(None, (key, message))))
            hints.append(*hint or ["keep one rule and set the others to null" if "rule" in message else "set one of them"])
        else:
            lines.append(f"{_readable(path)}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}")
            text = isinstance(problem["input"], str) and problem["type"] in ("float_type", "int_type")
            hints.append("a number stands without quotes" if text else f"{kind.reference} lists what each key takes")
    separator = "\n  "
    return ConfigError(f"{source}: {separator.join(dict.fromkeys(lines))}", "\n".join(dict.fromkeys(hints)))


def _readable(path: list[str]) -> str:
    """A union's branch (`list[str]`, `literal['all']`) stands at the end of pydantic's path; the user never wrote it."""
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
