"""The record of the edits that a pipeline has had, beside its model_index.json:

    edit.json    {"pairs": {"a sks star": "a red star", "circle": "", "doctor": ["a male doctor", "a female doctor"]}, ...}

`pairs` maps each edited prompt to its target, or to several. The empty target is the empty prompt. `after` is the model that was
edited, if it was an edited or trained one (`after.py`). `store` has the `url` of the store whose prompts were preserved, and
`tensors` the digests of the edited weights.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After, Made
from nullbooth_cli.model.trained_files import locate
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.fingerprints import fingerprint
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


def edit_digest(place: str) -> str | None:
    """The digest of the edited weights, as the record of an edit has them; None for any other place."""
    return None if (record := edit_record(place)) is None else fingerprint(record.get("tensors"))


def read_after(record: Mapping[str, Any], file: Path) -> After | None:
    """The model that was edited, by the record of an edit; None for the base. Raises ConfigError if it cannot be read."""
    try:
        return After.read(record)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{file} is not the record of an edit", COPY_AGAIN) from error


def started_from(place: str) -> tuple[Made, Path, After | None]:
    """How the model at a place that exists was made, the folder of its record, and the earlier model, None if it tells of none.

    Raises ConfigError for a record that cannot be read, and as `locate` does. Cost: a small file.
    """
    if (record := edit_record(place)) is not None:
        return "edited", Path(place).expanduser(), read_after(record, Path(place) / EDIT_FILE)
    located = locate(Path(place).expanduser().resolve())
    return "trained", located.path, located.after


def edit_chain(place: str, digest_at: Callable[[str], str | None] = edit_digest) -> Iterator[str]:
    """A place, and then the places of the models that it was edited or trained after, the latest first.

    Raises ConfigError for a record that cannot be read, for a model that is gone or, by `digest_at`, has changed since, and for
    records that name each other. Cost: a small file for each, and that of `digest_at`.
    """
    seen: list[Path] = []
    while True:
        if (path := Path(place).expanduser().resolve()) in seen:
            raise ConfigError(f"{place} was edited after itself, by its {EDIT_FILE}", "copy the folders that the edits wrote")
        seen.append(path)
        yield place
        if not path.exists():
            return
        made, folder, after = started_from(place)
        if after is None:
            return
        before = str(after.find(folder, made))
        now = digest_at(before)
        if now is not None and after.digest is not None and now != after.digest:
            raise ConfigError(
                f"{place} was {made} after {before}, which has changed since: together they are another model",
                f"put {before} back as it was, or make {place} again",
            )
        place = before


def edited_pairs(place: str) -> Pairs | None:
    """The targets of every prompt that was edited, earlier edits first; None for a place without a record of edits.

    Of a prompt that was edited twice, the later targets. Raises as `edit_chain`, and ConfigError for a record that does not map
    prompts to targets.
    """
    if edit_record(place) is None:
        return None
    found: dict[str, tuple[str, ...]] = {}
    for each in reversed(list(edit_chain(place))):
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
