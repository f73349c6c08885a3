"""Files of settings, read strictly into a pydantic model: unknown keys are refused, and all mistakes are reported at once.

`load_settings()` reads a YAML file and applies `KEY=VALUE` overrides; `validate()` takes a mapping. Such a model is a `Section`,
and its validators raise `refusal()`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.places import expanded
from nullbooth_cli.settings.secrets import is_secret, shown
from nullbooth_cli.settings.strict_yaml import parse_yaml
from nullbooth_cli.settings.texts import cut, flaw, quoted, read_text


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it is, the top-level keys that no other kind has, and where such a file belongs."""

    name: str
    keys: frozenset[str]
    use: str


CONFIG = Kind(
    "a config of the pipeline",
    frozenset({"original_knowledge_prompts", "heldout_prompts", "schedule", "collect", "covariance", "project"}),
    "give it to run, or to a stage",
)
RECIPE = Kind(
    "a recipe of a training run",
    frozenset({"output", "instance_images", "instance_prompt", "method", "rank", "learning_rate", "max_train_steps", "word"}),
    "give it to train",
)

NOTHING = ("", "~", "null", "Null", "NULL")  # in YAML


class Section(BaseModel):
    """Keys that belong together; messages quote the description of a key.

    `places` are the keys that name a path (or a URL, or a hub id): they are expanded as in a shell. `file_kind` is what a
    whole file of them is, and `other_kind` what is given in its place by mistake. Of the keys in `alternatives` one
    is in force: an override of one takes the place of all others. `former` are keys of earlier versions, with what to write now.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True
    )
    alternatives: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[tuple[str, ...]] = ()
    file_kind: ClassVar[Kind | None] = None
    other_kind: ClassVar[Kind | None] = None
    former: ClassVar[Mapping[str, str]] = {}

    @field_validator("*")
    @classmethod
    def _expand(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name not in cls.places or not isinstance(value, str):
            return value
        try:
            return expanded(value)
        except ConfigError as error:
            raise refusal(error.message, error.hint) from error


SectionT = TypeVar("SectionT", bound=Section)


def refusal(message: str, hint: str) -> PydanticCustomError:
    """The error of a validator about several keys together; `hint` is how to fix them."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def load_settings(kind: type[SectionT], path: Path, overrides: Iterable[str] = ()) -> SectionT:
    """Read a file of settings and apply `KEY=VALUE` overrides. Raises ConfigError naming the key and the file."""
    data = parse_yaml(read_text(path, "file", most=limits.SETTINGS_BYTES), str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} has a {type(data).__name__} instead of keys and values", "write lines such as model: toy")
    return validate(kind, data or {}, overrides, str(path))


def validate(kind: type[SectionT], data: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "overrides") -> SectionT:
    """Validate a nested mapping, with `a.b=c` overrides on top; `source` begins the message if something is wrong."""
    own, other = kind.file_kind, kind.other_kind
    if own and other and len(other.keys & set(data)) > len(own.keys & set(data)):
        raise ConfigError(f"{source} is {other.name}, not {own.name}", f"{other.use}; here give {own.name}, such as init writes")
    merged: dict[str, Any] = _plain(data, source, "")
    overrides = list(overrides)
    for override in overrides:
        _give_way(kind, merged, override)
    for override in overrides:
        _apply(kind, merged, override)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _explain(kind, error, source) from None  # pydantic's own error repeats the values


def _plain(value: Any, source: str, key: str, level: int = 0) -> Any:
    """A copy of nested values as JSON has them. Raises ConfigError for others, and for texts that nothing could store."""
    where = f"{source}: {shown(key)}" if key else source
    if level > limits.LEVELS:
        raise ConfigError(f"{source}: values are nested more than {limits.LEVELS} levels deep", "write it with fewer levels")
    if isinstance(value, Mapping):
        return {
            _plain(str(name), source, key, level + 1): _plain(inner, source, f"{key}.{name}" if key else str(name), level + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(inner, source, key, level + 1) for inner in value]
    text = str(value) if isinstance(value, Path) else value
    if isinstance(text, str) and (problem := flaw(text)):
        raise ConfigError(f"{where}: {'a text' if is_secret(key) else quoted(text)} {problem}", "write it without")
    if isinstance(text, int) and abs(text) > limits.INTEGER:
        raise ConfigError(f"{where}: an integer of more than 64 bits", "write a smaller number")
    if not isinstance(text, str | int | float | None):
        raise ConfigError(f"{where}: a value of the type {type(text).__name__}", "give text, numbers, lists and mappings")
    return text


def _give_way(kind: type[Section], data: dict[str, Any], override: str) -> None:
    """Take out of the data the alternatives to a key that is overridden, unless it is only taken out itself."""
    key, _, value = override.partition("=")
    *sections, last = key.strip().split(".")
    place: Any = data
    for section in sections:
        field = kind.model_fields.get(section)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return
        kind, place = field.annotation, place.get(section) if isinstance(place, dict) else None
    if last in kind.alternatives and isinstance(place, dict) and value.strip() not in NOTHING:
        for alternative in kind.alternatives:
            place.pop(alternative, None)


def _apply(kind: type[Section], data: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    named = cut(shown(key.strip()))
    if not sign:
        written = f"{shown(key).partition('.')[0]}..." if is_secret(key) else quoted(override)
        raise ConfigError(f"the override {written} has no '='", "write section.key=value")
    *sections, last = key.strip().split(".")
    place = data
    if len(sections) > limits.LEVELS:
        raise ConfigError(f"the override {quoted(key)} has more than {limits.LEVELS} levels", "write section.key=value")
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            hint = f"name a key inside a section: {', '.join(_sections(kind))}"
            raise ConfigError(f"the override of {named}: {quoted(section)} is not a section", hint)
        place = inner
    source = f"the override of {named}"
    place[last] = _plain(parse_yaml(value, source), source, key.strip())


def _explain(kind: type[Section], error: ValidationError, source: str) -> ConfigError:
    """The first problems at once, one a line, and a hint for each."""
    problems = error.errors()
    lines, hints = zip(*(_explain_one(kind, problem) for problem in problems[: limits.PROBLEMS]), strict=True)
    more = (f"and {len(problems) - limits.PROBLEMS} more",) if len(problems) > limits.PROBLEMS else ()
    separator = "\n  "
    return ConfigError(f"{source}: {separator.join(dict.fromkeys([*lines, *more]))}", "\n".join(dict.fromkeys(hints)))


def _explain_one(kind: type[Section], problem: ErrorDetails) -> tuple[str, str]:
    """The line and the hint for one problem; for an unknown key, the hint is the nearest known one."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known, named = _known_keys(kind, path[:-1]), quoted(shown(key))
        if key in kind.former:
            return f"unknown key {named}", kind.former[key]
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = (
            f"did you mean '{'.'.join([*path[:-1], near[0]])}' for {named}?"
            if near
            else f"choose a known key: {', '.join(known)}"
        )
        return f"unknown key {named}", hint
    readable = _readable(path)
    if problem["type"] == "refused":
        return ": ".join(filter(None, (readable, problem["msg"]))), problem["ctx"]["hint"]
    msg, given = problem["msg"], problem["input"]
    is_quoted_number = isinstance(given, str) and problem["type"] in ("float_type", "int_type")
    got = "another value (it is not shown)" if is_secret(key) else quoted(given)
    return (
        ": ".join(filter(None, (readable, f"{msg[0].lower()}{msg[1:]}, got {got}"))),
        "write a number without quotes" if is_quoted_number else _described(kind, path),
    )


def _described(kind: type[Section], path: list[str]) -> str:
    """The hint that says what the innermost key of a path is."""
    described = "give another value"
    for name in path:
        field = kind.model_fields.get(name)
        if field is None:
            break
        described = f"{name}: {field.description}" if field.description else described
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        kind = field.annotation
    return described


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
