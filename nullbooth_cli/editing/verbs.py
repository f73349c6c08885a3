"""What an edit is asked for, by its verb, as pairs of a source and its targets.

    map      a sks star: a red star       the source gets the picture of the target
    erase    circle                       the concept becomes neutral: the empty prompt, or what is named
    debias   doctor: [male, female]       the profession gets the mean of "male doctor" and "female doctor"

The empty prompt is what UCE (`trainscripts/uce_sd_erase.py`) and SPEED (`train_erase_null.py`) replace an object with. UCE
debiases by adding directions of the attributes to the profession's own, and draws pictures to set their shares, some thirty times
(`trainscripts/uce_sd_debias.py`). Here the shares are equal and nothing is drawn, so pictures need not come out in equal numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nullbooth_cli.editing.around import Around, pairs_around
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.editing.report import Targets, several
from nullbooth_cli.editing.settings import GivenSettings
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.settings.strict_yaml import parse_yaml
from nullbooth_cli.settings.texts import cut, flaw, quoted, read_text

NEUTRAL = ""
SHAPE = "write lines `source: target`, or lists under map, erase and debias, and settings"
SETTINGS = "settings"  # the key of a file, beside the verbs


class Pair(NamedTuple):
    """A source, and what it should look like: one text, or several whose mean is meant."""

    source: str
    targets: tuple[str, ...]


def mapped(source: str, target: str, around: Around | None = "object") -> list[Pair]:
    """The source looks like the target; two words without a space also in prompts `around` them.

    Raises ConfigError for texts that are empty, and for one that is its own target.
    """
    _require_text(source, f"the source of '{target}'")
    _require_text(target, f"the target of '{source}'", "name one; to remove a concept, erase it")
    _require_other(source, target)
    return _around(source, (target,), around if _is_word(source) and _is_word(target) else None)


def erased(concept: str, neutral: str = NEUTRAL, around: Around | None = "object") -> list[Pair]:
    """The concept looks like something neutral, also in prompts `around` it, unless it has brackets.

    Raises ConfigError for a concept without text, and for one that is neutral itself.
    """
    _require_text(concept, "a concept to erase")
    _require_other(concept, neutral)
    return _around(concept, (neutral if neutral.strip() else NEUTRAL,), around)


def debiased(profession: str, attributes: Sequence[str], around: Around | None = "object") -> list[Pair]:
    """The profession looks like the mean of it with each attribute before it, also in prompts `around` it.

    With brackets, the attributes come before these, and there are no other prompts. Raises ConfigError for a profession or an
    attribute without text, and unless there are two attributes or more.
    """
    _require_text(profession, "a profession to debias")
    attributes = [attribute.strip() for attribute in attributes]
    for attribute in attributes:
        _require_text(attribute, f"an attribute of '{profession}'")
    if len(set(attributes)) < max(len(attributes), 2):
        raise ConfigError(
            f"'{profession}' is debiased over {listed(attributes, 20) or 'nothing'}", "name two attributes or more, each once"
        )
    before, bracket, rest = profession.partition("[")
    head, tail = (before, bracket + rest) if bracket else ("", profession)
    return _around(profession, tuple(f"{head}{attribute} {tail}" for attribute in attributes), around)


def _around(source: str, targets: tuple[str, ...], kind: Around | None) -> list[Pair]:
    """The pair of a source and its targets, and those of prompts around it."""
    if kind is None or "[" in source:
        return [Pair(source, targets)]
    filled = [pairs_around(source, target, kind) for target in targets]
    return [Pair(prompt, tuple(each[prompt] for each in filled)) for prompt in filled[0]]


def _is_word(text: str) -> bool:
    return len(text.split()) == 1 and not set("[]{}") & set(text)


class EditFile(NamedTuple):
    """The pairs of a file, and the settings that it gives, by name."""

    pairs: list[Pair]
    settings: dict[str, Any]


def read_edits(file: str, around: Around | None = "object") -> EditFile:
    """What a YAML file asks for: lines `source: target`, or lists under map, erase and debias, and `settings`.

    An item of a list is `source: target`; a concept to erase may be alone, and a profession has a list of attributes. The
    settings are those of `EditSettings`. Raises ConfigError for a file that cannot be read, and naming every mistake in the
    pairs, or in the settings.
    """
    text = read_text(Path(file), "file", missing=f"name a YAML file: {SHAPE}", most=limits.SETTINGS_BYTES)
    read = parse_yaml(text, file)
    if not isinstance(read, dict) or not read:
        raise ConfigError(f"{file} has no pairs of prompts", SHAPE)
    by_verb = any(isinstance(value, list | dict) for value in read.values())
    given = read.pop(SETTINGS, {}) if by_verb else {}
    if not isinstance(given, dict):
        raise ConfigError(f"{file}: settings is {quoted(given)}, not keys and values", "write `method: speed` below it")
    settings = validate(GivenSettings, given, source=f"{file}: {SETTINGS}").model_dump(exclude_none=True)
    items = _items(read) if by_verb else (("map", one) for one in read.items())
    return EditFile(made((partial(_pairs_of, verb, item, around) for verb, item in items), f"{file}: "), settings)


def _items(read: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """(verb, item) of every item in lists by verb; an item is (source, targets), or a concept alone."""
    for verb, items in read.items():
        for item in items if isinstance(items, list) else [items]:
            yield from ((verb, one) for one in (item.items() if isinstance(item, dict) else [item]))


def _pairs_of(verb: Any, item: Any, around: Around | None) -> list[Pair]:
    if verb not in _MAKERS:
        raise ConfigError(f"{quoted(verb)} is not map, erase, debias or settings", SHAPE)
    given = item if isinstance(item, tuple) else (item,)
    shown = f"{verb}: {': '.join(cut(str(part)) for part in given)}"
    if not (len(given) == 2 or verb == "erase") or isinstance(given[-1], list) is not (verb == "debias"):
        raise ConfigError(f"{shown} is not {_SHAPES[verb]}", f"write it so below {verb}")
    texts = [given[0], *(given[-1] if verb == "debias" else given[1:])]
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise ConfigError(f"{shown} has {quoted(strange[0])}, which is not a text", "put it in quotes")
    return _MAKERS[verb](*given, around=around)


_MAKERS: Mapping[str, Callable[..., list[Pair]]] = {"map": mapped, "erase": erased, "debias": debiased}
_SHAPES = {"map": "`source: target`", "erase": "`concept` or `concept: neutral`", "debias": "`profession: [one, another]`"}


def made(makers: Iterable[Callable[[], list[Pair]]], place: str = "") -> list[Pair]:
    """The pairs that functions make. Raises one ConfigError for all that fail, a line each; `place` begins the first."""
    pairs, errors = list[Pair](), list[ConfigError]()
    for make in makers:
        try:
            pairs += make()
        except ConfigError as error:
            errors.append(error)
    if errors:
        more = [f"and {len(errors) - limits.PROBLEMS} more"] if len(errors) > limits.PROBLEMS else []
        lines, hints = ([str(getattr(error, part)) for error in errors[: limits.PROBLEMS]] for part in ("message", "hint"))
        raise ConfigError(place + "\n  ".join([*lines, *more]), "\n".join(dict.fromkeys(hints)))
    return pairs


def as_mapping(pairs: Sequence[Pair]) -> dict[str, Targets]:
    """Targets by their source, as `edit` takes them. Raises ConfigError for sources that appear twice."""
    _require_once([pair.source for pair in pairs])
    return {pair.source: pair.targets[0] if len(pair.targets) == 1 else pair.targets for pair in pairs}


def require_pairs(pairs: Mapping[str, Targets]) -> None:
    """Raise ConfigError unless every source of `edit` has targets other than itself, and brackets mark one subject each."""
    if not pairs:
        raise ConfigError("no prompt to edit", "name sources and other targets")
    for source, targets in pairs.items():
        if not several(targets):
            raise ConfigError(f"'{source}' has no target", "name one")
        for target in several(targets):
            _require_other(source, target)
    _require_once(list(pairs))


def _require_other(source: str, target: str) -> None:
    if Marked.read(source).text == Marked.read(target).text:
        raise ConfigError(f"'{Marked.read(source).text}' is its own target", "name another target")


def _require_once(sources: Sequence[str]) -> None:
    counts = Counter(Marked.read(source).text for source in sources)
    if twice := [repr(text) for text, count in counts.items() if count > 1]:
        appear = "appears" if len(twice) == 1 else "appear"
        raise ConfigError(f"{listed(twice)} {appear} twice as a source", "keep one target for each prompt")


def _require_text(text: str, what: str, hint: str = "name one") -> None:
    if problem := flaw(text):
        raise ConfigError(f"{quoted(text)} {problem}", "write it without")
    if not Marked.read(text).text.strip():
        raise ConfigError(f"{what} is empty", hint)
