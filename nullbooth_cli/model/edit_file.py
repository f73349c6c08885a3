"""The record of the edits that a pipeline has had, beside its model_index.json:

    edit.json    {"pairs": {"a sks star": "a red star", "circle": "", "doctor": ["a male doctor", "a female doctor"]}, ...}

`pairs` maps each edited prompt to its target, or to several. The empty target is the empty prompt. `after` is the place of the
model that was edited, if it was an edited one. `store` has the `url` of the store whose prompts were preserved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.strict_json import parse_json
from nullbooth_cli.settings.texts import read_text

EDIT_FILE = "edit.json"
COPY_AGAIN = "copy the whole folder that the edit wrote"
Pairs = Mapping[str, tuple[str, ...]]


def edit_record(place: str | Path) -> dict[str, Any] | None:
    """The record of the edits of a pipeline folder; None for any other place. Raises ConfigError for one that cannot be read."""
    file = Path(place).expanduser() / EDIT_FILE
    if not file.exists():
        return None
    read = parse_json(read_text(file, "file", most=limits.SETTINGS_BYTES), str(file), COPY_AGAIN)
    if not isinstance(read, dict):
        raise ConfigError(f"{file} is not the record of an edit", COPY_AGAIN)
    return read


def edit_chain(place: str) -> list[str]:
    """A place, and before it the places of the models that it was edited after, the earliest first.

    Raises ConfigError for a record that cannot be read, and for records that name each other.
    """
    chain: list[str] = []
    following: str | None = place
    while following is not None:
        if Path(following).resolve() in [Path(each).resolve() for each in chain]:
            raise ConfigError(f"{following} was edited after itself, by its {EDIT_FILE}", "copy the folders that the edits wrote")
        chain.append(following)
        after = (edit_record(following) or {}).get("after")
        following = after if isinstance(after, str) else None
    return chain[::-1]


def edited_pairs(place: str) -> Pairs | None:
    """The targets of every prompt that was edited, earlier edits first; None for a place without a record of edits.

    Of a prompt that was edited twice, the later targets. Raises ConfigError for a record that does not map prompts to targets.
    """
    if edit_record(place) is None:
        return None
    found: dict[str, tuple[str, ...]] = {}
    for each in edit_chain(place):
        if (record := edit_record(each)) is not None:
            file, pairs = Path(each) / EDIT_FILE, record.get("pairs")
            if not isinstance(pairs, dict):
                raise ConfigError(f"{file} has no pairs of prompts", "edit again, or name the edited prompts")
            found |= pairs_of(pairs, str(file))
    return found


def pairs_of(pairs: Mapping[str, Any], place: str) -> Pairs:
    """A mapping of prompts to targets, each a text or a list of texts, with all targets as tuples.

    Raises ConfigError that names the `place` for anything else, and for an edited prompt that is empty or its own target.
    """
    hint = "map each edited prompt to the prompt that it should look like, or to a list of them"
    found: dict[str, tuple[str, ...]] = {}
    for source, given in pairs.items():
        targets = [given] if isinstance(given, str) else given
        is_texts = isinstance(targets, list | tuple) and targets and all(isinstance(target, str) for target in targets)
        if not isinstance(source, str) or not _plain(source) or not is_texts:
            raise ConfigError(f"{place} maps {source!r} to {given!r}, not a prompt to prompts", hint)
        found[_plain(source)] = tuple(map(_plain, targets))
        if _plain(source) in found[_plain(source)]:
            raise ConfigError(f"{place} maps {source!r} to itself", hint)
    return found


def _plain(text: str) -> str:
    """A text as a model reads it: brackets only mark its subject."""
    return text.replace("[", "").replace("]", "").strip()
