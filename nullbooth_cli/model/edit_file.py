"""The record of the edits that a pipeline has had, beside its model_index.json:

    edit.json    {"pairs": {"a sks star": "a red star", "circle": "", "doctor": ["a male doctor", "a female doctor"]}, ...}

`pairs` maps each edited prompt to its target, or to several. The empty target is the empty prompt. `after` is the place of the
model that was edited, if it was an edited one. `store` has the `url` of the store whose prompts were preserved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.pipeline_folder import read_json

EDIT_FILE = "edit.json"
Pairs = Mapping[str, tuple[str, ...]]


def edit_record(place: str) -> dict[str, Any] | None:
    """The record of the edits of a pipeline folder; None for any other place. Raises ConfigError for one that cannot be read."""
    file = Path(place).expanduser() / EDIT_FILE
    return read_json(file) if file.is_file() else None


def edited_pairs(place: str) -> Pairs | None:
    """The targets of every prompt that was edited, earlier edits first; None for a place without a record of edits.

    Of a prompt that was edited twice, the later targets. Raises ConfigError for a record that does not map prompts to targets.
    """
    record = edit_record(place)
    if record is None:
        return None
    pairs, after = record.get("pairs"), record.get("after")
    if not isinstance(pairs, dict):
        raise ConfigError(f"{Path(place) / EDIT_FILE} has no pairs of prompts", "edit again, or name the edited prompts")
    earlier = edited_pairs(after) if isinstance(after, str) and after != place else None
    return {**(earlier or {}), **pairs_of(pairs, str(Path(place) / EDIT_FILE))}


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
